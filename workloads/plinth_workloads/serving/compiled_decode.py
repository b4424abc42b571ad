"""One token of each row by a compiled model: most steps of an engine, and what those who read its texts wait for.

Enters: a model whose attention is in slots, and the tokens of a step. Leaves: their logits, from one function for any
number of rows and any length; on a GPU replayed as a CUDA graph for each size of a ladder. Whatever is not compiled
when requests come is computed as Python reads it: no request ever waits for a compiler.

Shapes: S slots, H heads of keys, Q heads of queries, G queries of each head of keys, C capacity of a slot, L positions
seen, D head size, N tokens of the step, V vocabulary.
"""

from collections.abc import Callable, Sequence
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from plinth_workloads.serving.slot_attention import LONG, of_one_token_each

_LEAST_LENGTH = 256
"""Of the ladder of a GPU, as capacities begin with it."""

_numbers = count()


class CompiledDecode:
    """The compiled model. Use from one thread: CUDA graphs belong to the thread that records them.

    Args:
        model: In evaluation mode, its attention in slots.
        windows: Per layer, how many positions a token sees, itself included; None for all.
        no_mask: What the model takes for a finished mask.
    """

    def __init__(self, model: Any, windows: Sequence[int | None], no_mask: Tensor) -> None:
        self._model, self._windows, self._no_mask = model, tuple(windows), no_mask
        self._on_gpu = model.device.type == "cuda"
        # Compiled forms are kept with a function's code, a few at most: each model has a code of its own.
        own = FunctionType(_decode.__code__.replace(co_name=f"decode_{next(_numbers)}"), _decode.__globals__)
        mode = "reduce-overhead" if self._on_gpu else None
        self._compiling: Callable[..., Tensor] = torch.compile(own, dynamic=True, fullgraph=True, mode=mode)
        self._compiled: Callable[..., Tensor] = torch._dynamo.run(self._compiling)

    def logits(
        self,
        token_ids: Sequence[int],
        rows: Sequence[tuple[int, int]],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        *,
        compile: bool = False,
    ) -> Tensor:
        """Read one token of each row.

        Args:
            token_ids: One of each row.
            rows: Per row its slot and the position of the token; in the order of the slots.
            keys: Per layer (S, H, C, D), written in place.
            values: Likewise.
            compile: Whether to compile now what is missing.

        Returns:
            (N, V); the next call overwrites them.
        """
        slots, positions = (list(part) for part in zip(*rows, strict=True))
        num_slots, capacity = keys[0].shape[0], keys[0].shape[2]
        # Two at least: the compiler takes one for a number of its own.
        used, length = max(2, slots[-1] + 1), max(2, max(positions) + 1)
        given = list(token_ids)
        if self._on_gpu:
            used, length = _rung(used, 1, num_slots), _rung(length, _LEAST_LENGTH, capacity)
            # The last row once more, which writes what it wrote.
            slots, positions, given = (part + part[-1:] * (used - len(part)) for part in (slots, positions, given))
            for part in (*keys, *values):
                # A graph writes where they lie; of other arguments it has copies.
                torch._dynamo.mark_static_address(part)
            torch.compiler.cudagraph_mark_step_begin()
        device = keys[0].device
        logits_NV = (self._compiling if compile else self._compiled)(
            self._model,
            torch.tensor([given], device=device),
            torch.tensor(positions, device=device),
            torch.tensor(slots, device=device),
            min(used, num_slots),
            min(length, capacity),
            keys,
            values,
            self._windows,
            self._no_mask,
        )
        return logits_NV[: len(rows)]


def can_be_compiled(rows: Sequence[tuple[int, int, int]]) -> bool:
    """Whether a step is one token of each row, in slots and of lengths that are not too far from each other.

    Args:
        rows: Per row its slot, the position of its first token, and how many tokens it has.
    """
    if any(num_tokens != 1 for _, _, num_tokens in rows):
        return False
    lengths = sorted(start + 1 for _, start, _ in rows)
    used = max(slot for slot, _, _ in rows) + 1
    return used <= 2 * len(rows) and lengths[-1] < LONG * (lengths[len(lengths) // 2] + 1)


def _rung(wanted: int, least: int, most: int) -> int:
    size = least
    while size < wanted:
        size *= 2
    return min(size, most)


class _OneEach:
    """See SlotStep: the part of it that a step of one token of each row needs, without decisions on the way."""

    def __init__(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        windows: Sequence[int | None],
        slot_N: Tensor,
        position_N: Tensor,
        num_slots: int,
        length: int,
    ) -> None:
        self._keys, self._values, self._windows = keys, values, windows
        self._slot_N, self._position_N = slot_N, position_N
        self._num_slots, self._length = num_slots, length
        last_S = position_N.new_zeros(num_slots)
        last_S[slot_N] = position_N
        self._last_S1 = last_S[:, None]

    def attend(
        self, layer: int, query_1QND: Tensor, key_1HND: Tensor, value_1HND: Tensor, scale: float | None
    ) -> Tensor:
        """See SlotStep."""
        keys_SHCD, values_SHCD = self._keys[layer], self._values[layer]
        keys_SHCD[self._slot_N, :, self._position_N] = key_1HND[0].transpose(0, 1)
        values_SHCD[self._slot_N, :, self._position_N] = value_1HND[0].transpose(0, 1)
        query_NQD = query_1QND[0].transpose(0, 1)
        query_SQD = query_NQD.new_zeros(self._num_slots, *query_NQD.shape[1:])
        query_SQD[self._slot_N] = query_NQD
        keys_SHLD, values_SHLD = (part[: self._num_slots, :, : self._length] for part in (keys_SHCD, values_SHCD))
        attention = _by_heads if _is_read_once(query_1QND, key_1HND) else of_one_token_each
        made_SQD = attention(query_SQD, keys_SHLD, values_SHLD, self._seen(self._windows[layer]), scale)
        return made_SQD[self._slot_N][None]

    def _seen(self, window: int | None) -> Tensor:
        """(S, 1, 1, L)."""
        position_L = torch.arange(self._length, device=self._last_S1.device)
        seen_SL = position_L <= self._last_S1
        if window is not None:
            seen_SL = seen_SL & (position_L > self._last_S1 - window)
        return seen_SL[:, None, None]


def _is_read_once(query_1QND: Tensor, key_1HND: Tensor) -> bool:
    return query_1QND.device.type == "cpu" and query_1QND.shape[1] == key_1HND.shape[1]


def _by_heads(query_SQD: Tensor, keys_SHLD: Tensor, values_SHLD: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """(S, Q, D), where each head of keys has one query: sums that the compiler makes one pass over keys and values."""
    scale = query_SQD.shape[-1] ** -0.5 if scale is None else scale
    scores_SHL = (query_SQD[:, :, None].float() * keys_SHLD.float()).sum(-1) * scale
    weights_SHL = scores_SHL.masked_fill(~mask[:, 0], float("-inf")).softmax(-1)
    return (weights_SHL[..., None] * values_SHLD.float()).sum(2).to(query_SQD.dtype)


def _decode(
    model: Any,
    ids_1N: Tensor,
    position_N: Tensor,
    slot_N: Tensor,
    num_slots: int,
    length: int,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    windows: Sequence[int | None],
    no_mask: Tensor,
) -> Tensor:
    step = _OneEach(keys, values, windows, slot_N, position_N, num_slots, length)
    output = model(input_ids=ids_1N, attention_mask=no_mask, position_ids=position_N[None], use_cache=False, slots=step)
    logits_NV: Tensor = output.logits[0]
    return logits_NV
