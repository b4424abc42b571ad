"""The steps of an engine by a model that torch.compile has compiled, for any number of rows and tokens.

Enters: a model whose attention is in slots, and the tokens of a step. Leaves: their logits. Steps of one token of each
row, which most are, are compiled with their attention, on a GPU replayed as a CUDA graph for each size of a ladder; of
all others everything but attention is. What is not compiled when requests come is computed as Python reads it: no
request ever waits for a compiler.

Shapes: S slots, H heads of keys, Q heads of queries, G queries of each head of keys, C capacity of a slot, L positions
seen, D head size, N tokens of the step, R rows, V vocabulary.
"""

from collections.abc import Callable, Sequence
from itertools import count
from types import FunctionType
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from plinth_workloads.serving.slot_attention import LONG, SlotStep, of_one_token_each, rung

_LEAST_LENGTH = 256
"""Of the ladder of a GPU, as capacities begin with it."""

_APART = 2
"""Added to a slot's number where the compiler sees it: 0 and 1 would be numbers of their own."""

_numbers = count()
_steps: WeakValueDictionary[int, SlotStep] = WeakValueDictionary()


class CompiledModel:
    """The compiled model. Use from one thread: CUDA graphs belong to the thread that records them.

    Args:
        model: In evaluation mode, its attention in slots.
        windows: Per layer, how many positions a token sees, itself included; None for all.
        no_mask: What the model takes for a finished mask.
    """

    def __init__(self, model: Any, windows: Sequence[int | None], no_mask: Tensor) -> None:
        self._model, self._windows, self._no_mask = model, tuple(windows), no_mask
        self._on_gpu = model.device.type == "cuda"
        self._decode = _Compiled(_decode, cuda_graphs=self._on_gpu)
        self._read = _Compiled(_read)

    def decode(
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
            (R, V); the next call overwrites them.
        """
        slots, positions = (list(part) for part in zip(*rows, strict=True))
        num_slots, capacity = keys[0].shape[0], keys[0].shape[2]
        # Two at least: the compiler takes one for a number of its own.
        used, length = min(max(2, slots[-1] + 1 - slots[0]), num_slots), min(max(2, max(positions) + 1), capacity)
        first = min(slots[0], num_slots - used)
        given = list(token_ids)
        if self._on_gpu:
            # Few sizes, each with a graph of its own.
            first, used, length = 0, rung(slots[-1] + 1, 1, num_slots), rung(length, _LEAST_LENGTH, capacity)
            # The last row once more, which writes what it wrote.
            slots, positions, given = (part + part[-1:] * (used - len(part)) for part in (slots, positions, given))
            for part in (*keys, *values):
                # A graph writes where they lie; of other arguments it has copies.
                torch._dynamo.mark_static_address(part)
            torch.compiler.cudagraph_mark_step_begin()
        device = keys[0].device
        step = (torch.tensor(part, device=device) for part in (given, positions, slots))
        sizes = (first + _APART, used, length)
        logits_NV = self._decode(
            self._model, *step, *sizes, keys, values, self._windows, self._no_mask, compile=compile
        )
        return logits_NV[: len(rows)]

    def read(self, step: SlotStep, token_ids: Sequence[int], last_R: Tensor, *, compile: bool = False) -> Tensor:
        """Read any tokens.

        Args:
            step: Where they are.
            token_ids: Of all rows.
            last_R: Which of them are the last of their rows.
            compile: Whether to compile now what is missing.

        Returns:
            (R, V).
        """
        number = next(_numbers)
        _steps[number] = step
        # Two at least, as above.
        kept_R = last_R if len(last_R) > 1 else last_R.repeat(2)
        given = (torch.tensor(token_ids, device=last_R.device), step.position_N, kept_R, torch.tensor(number))
        return self._read(self._model, *given, self._no_mask, compile=compile)[: len(last_R)]


class _Compiled:
    """A function, compiled with symbolic sizes when it is told to, and never at other times."""

    def __init__(self, function: Callable[..., Tensor], *, cuda_graphs: bool = False) -> None:
        # Compiled forms are kept with a function's code, a few at most: each model has a code of its own.
        name = f"{function.__name__}_{next(_numbers)}"
        own = FunctionType(function.__code__.replace(co_name=name), function.__globals__)
        options: dict[str, Any] = {
            # Modules of a model that is served do not change; to look at each takes a twentieth of a small step.
            "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
            "triton.cudagraphs": cuda_graphs,
        }
        self._compiling: Callable[..., Tensor] = torch.compile(own, dynamic=True, fullgraph=True, options=options)
        self._compiled: Callable[..., Tensor] = torch._dynamo.run(self._compiling)

    def __call__(self, *arguments: Any, compile: bool) -> Tensor:
        return (self._compiling if compile else self._compiled)(*arguments)


def is_one_token_each(rows: Sequence[tuple[int, int, int]]) -> bool:
    """Whether a step is one token of each row, in slots and of lengths that are not too far from each other.

    Args:
        rows: Per row its slot, the position of its first token, and how many tokens it has.
    """
    if any(num_tokens != 1 for _, _, num_tokens in rows):
        return False
    lengths = sorted(start + 1 for _, start, _ in rows)
    slots = [slot for slot, _, _ in rows]
    return max(slots) + 1 - min(slots) <= 2 * len(rows) and lengths[-1] < LONG * (lengths[len(lengths) // 2] + 1)


class _OneEach:
    """See SlotStep: the part of it that a step of one token of each row needs, without decisions on the way."""

    def __init__(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        windows: Sequence[int | None],
        slot_N: Tensor,
        position_N: Tensor,
        first: int,
        num_slots: int,
        length: int,
    ) -> None:
        self._keys, self._values, self._windows = keys, values, windows
        self._slot_N, self._position_N = slot_N, position_N
        self._first, self._num_slots, self._length = first, num_slots, length
        self._place_N = slot_N - first
        last_S = position_N.new_zeros(num_slots)
        last_S[self._place_N] = position_N
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
        query_SQD[self._place_N] = query_NQD
        end = self._first + self._num_slots
        keys_SHLD, values_SHLD = (part[self._first : end, :, : self._length] for part in (keys_SHCD, values_SHCD))
        attention = _by_heads if _is_read_once(query_1QND, key_1HND) else of_one_token_each
        made_SQD = attention(query_SQD, keys_SHLD, values_SHLD, self._seen(self._windows[layer]), scale)
        return made_SQD[self._place_N][None]

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


class _Elsewhere:
    """See SlotStep: one whose attention the compiler does not look into."""

    def __init__(self, number: Tensor) -> None:
        self._number = number

    def attend(
        self, layer: int, query_1QND: Tensor, key_1HND: Tensor, value_1HND: Tensor, scale: float | None
    ) -> Tensor:
        """See SlotStep."""
        made: Tensor = torch.ops.plinth.attend_in_slots(query_1QND, key_1HND, value_1HND, self._number, layer, scale)
        return made


@torch.library.custom_op("plinth::attend_in_slots", mutates_args=())
def _attend_in_slots(
    query: Tensor, key: Tensor, value: Tensor, number: Tensor, layer: int, scale: float | None
) -> Tensor:
    return _steps[int(number)].attend(layer, query, key, value, scale)


@_attend_in_slots.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, number: Tensor, layer: int, scale: float | None) -> Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])


def _decode(
    model: Any,
    ids_N: Tensor,
    position_N: Tensor,
    slot_N: Tensor,
    first: int,
    num_slots: int,
    length: int,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    windows: Sequence[int | None],
    no_mask: Tensor,
) -> Tensor:
    step = _OneEach(keys, values, windows, slot_N, position_N, first - _APART, num_slots, length)
    output = model(
        input_ids=ids_N[None], attention_mask=no_mask, position_ids=position_N[None], use_cache=False, slots=step
    )
    logits_NV: Tensor = output.logits[0]
    return logits_NV


def _read(model: Any, ids_N: Tensor, position_N: Tensor, last_R: Tensor, number: Tensor, no_mask: Tensor) -> Tensor:
    output = model(
        input_ids=ids_N[None],
        attention_mask=no_mask,
        position_ids=position_N[None],
        use_cache=False,
        slots=_Elsewhere(number),
        logits_to_keep=last_R,
    )
    logits_RV: Tensor = output.logits[0]
    return logits_RV
