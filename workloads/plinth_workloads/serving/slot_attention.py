"""Attention over slots: tokens of many rows in one sequence, each seeing what its own slot holds up to its place.

Enters: the queries, keys and values of a step's tokens, as transformers' decoders hand them to an attention function.
Leaves: what attention gives. The tokens of a step are one sequence (1, N) without padding, so all other layers compute
no more than there is; rows that have one token are attended to together, and the pieces of prompts one by one.

Shapes: N tokens of the step, S slots, C capacity of a slot, L positions seen, H heads of keys, G queries of each, D
head size, B rows with one token, T tokens of a piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "plinth_slots"
"""Name under which transformers finds this attention function."""

LONG = 4
"""A row that is so many times longer than the middle one is attended to alone: the others need not see as far."""

_BYTES_OF_A_CALL = {"cpu": 2**19, "cuda": 2**25}
"""What of keys and values is read in the time that one more call takes: slots of so much that no row uses may be read
between those of others."""


class UnsupportedAttention(Exception):
    """The model's attention has something that this one has not."""


def rung(wanted: int, least: int, most: int) -> int:
    """The smallest size of a ladder that holds `wanted`: `least`, doubled again and again, and `most` at its end."""
    size = least
    while size < wanted:
        size *= 2
    return min(size, most)


@dataclass(frozen=True, slots=True)
class _Single:
    """One row: tokens [first, last) of the step, in `slot` from position `start` on."""

    slot: int
    first: int
    last: int
    start: int


class _Run:
    """Rows of one token each whose slots are near each other, attended to at once.

    Args:
        rows: In the order of their slots.
        device: Of the cache.
    """

    def __init__(self, rows: Sequence[_Single], device: torch.device) -> None:
        first, slots, tokens = rows[0].slot, [row.slot for row in rows], [row.first for row in rows]
        self.num_slots, self.length = slots[-1] + 1 - first, max(row.start for row in rows) + 1
        self.cache = (slice(first, first + self.num_slots), slice(None), slice(0, self.length))
        last = [0] * self.num_slots
        for row in rows:
            last[row.slot - first] = row.start
        self._last_S1 = torch.tensor(last, device=device)[:, None]
        self._masks: dict[int | None, Tensor | None] = {}
        # A slice is a view and costs nothing, where indices copy: the usual step has all rows in order.
        self.tokens: slice | Tensor = slice(tokens[0], tokens[0] + len(tokens))
        if tokens != list(range(tokens[0], tokens[0] + len(tokens))):
            self.tokens = torch.tensor(tokens, device=device)
        self.slots: Tensor | None = None
        if len(slots) < self.num_slots:
            self.slots = torch.tensor(slots, device=device) - first

    def mask(self, window: int | None) -> Tensor | None:
        """(S, 1, 1, L), or None where every row sees all L positions."""
        if window not in self._masks:
            position_L = torch.arange(self.length, device=self._last_S1.device)
            seen_SL = position_L <= self._last_S1
            if window is not None:
                seen_SL &= position_L > self._last_S1 - window
            self._masks[window] = None if bool(seen_SL.all()) else seen_SL[:, None, None]
        return self._masks[window]


class SlotStep:
    """Where the tokens of one step are in the step, and where in the cache.

    Args:
        keys, values: Per layer (S, H, C, D).
        windows: Per layer, how many positions a token sees, itself included; None for all.
        rows: Per row its slot, the position of its first token, and how many tokens it has.
    """

    def __init__(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        windows: Sequence[int | None],
        rows: Sequence[tuple[int, int, int]],
    ) -> None:
        self._keys, self._values, self._windows = keys, values, windows
        device = keys[0].device
        slots = [slot for slot, _, count in rows for _ in range(count)]
        positions = [start + offset for _, start, count in rows for offset in range(count)]
        self._slot_N = torch.tensor(slots, device=device)
        self.position_N = torch.tensor(positions, device=device)
        self._together: list[_Run] = []
        self._alone: list[_Single] = []
        self._piece_masks: dict[tuple[_Single, int | None], Tensor] = {}
        self._group(rows)

    def attend(
        self, layer: int, query_1QND: Tensor, key_1HND: Tensor, value_1HND: Tensor, scale: float | None
    ) -> Tensor:
        """Keep the keys and values of the step's tokens, and look at those of their rows.

        Returns:
            (1, N, H x G, D).
        """
        keys_SHCD, values_SHCD = self._keys[layer], self._values[layer]
        keys_SHCD[self._slot_N, :, self.position_N] = key_1HND[0].transpose(0, 1)
        values_SHCD[self._slot_N, :, self.position_N] = value_1HND[0].transpose(0, 1)
        num_queries, num_tokens = query_1QND.shape[1:3]
        out_NQD = query_1QND.new_empty(num_tokens, num_queries, values_SHCD.shape[-1])
        for run in self._together:
            self._attend_together(run, layer, query_1QND, out_NQD, scale)
        for single in self._alone:
            self._attend_alone(single, layer, query_1QND, out_NQD, scale)
        return out_NQD[None]

    def _group(self, rows: Sequence[tuple[int, int, int]]) -> None:
        first = 0
        ones: list[_Single] = []
        for slot, start, count in rows:
            (ones if count == 1 else self._alone).append(_Single(slot, first, first + count, start))
            first += count
        if not ones:
            return
        middle = sorted(single.start for single in ones)[len(ones) // 2]
        self._alone += [single for single in ones if single.start >= LONG * (middle + 1)]
        near = sorted((single for single in ones if single.start < LONG * (middle + 1)), key=lambda one: one.slot)
        for run in self._runs(near):
            if len(run) == 1:
                self._alone += run
            else:
                self._together.append(_Run(run, self._slot_N.device))

    def _runs(self, ones: Sequence[_Single]) -> list[list[_Single]]:
        """Rows that are computed with one call: slots between theirs are computed too, where that costs less."""
        keys, values = self._keys[0], self._values[0]
        position_bytes = sum(part.shape[1] * part.shape[3] * part.element_size() for part in (keys, values))
        most_bytes = _BYTES_OF_A_CALL["cpu" if keys.device.type == "cpu" else "cuda"]
        runs: list[list[_Single]] = []
        for single in ones:
            unused = single.slot - runs[-1][-1].slot - 1 if runs else 0
            if runs and unused * (single.start + 1) * position_bytes <= most_bytes:
                runs[-1].append(single)
            else:
                runs.append([single])
        return runs

    def _attend_together(self, run: _Run, layer: int, query_1QND: Tensor, out_NQD: Tensor, scale: float | None) -> None:
        keys_SHLD, values_SHLD = self._keys[layer][run.cache], self._values[layer][run.cache]
        query_SQD = query_BQD = query_1QND[0].transpose(0, 1)[run.tokens]
        if run.slots is not None:
            query_SQD = query_BQD.new_zeros(run.num_slots, *query_BQD.shape[1:])
            query_SQD[run.slots] = query_BQD
        made_SQD = of_one_token_each(query_SQD, keys_SHLD, values_SHLD, run.mask(self._windows[layer]), scale)
        out_NQD[run.tokens] = made_SQD if run.slots is None else made_SQD[run.slots]

    def _attend_alone(
        self, single: _Single, layer: int, query_1QND: Tensor, out_NQD: Tensor, scale: float | None
    ) -> None:
        window, end = self._windows[layer], single.start + single.last - single.first
        first_seen = 0 if window is None else max(0, single.start - window + 1)
        keys_1HLD = self._keys[layer][single.slot : single.slot + 1, :, first_seen:end]
        values_1HLD = self._values[layer][single.slot : single.slot + 1, :, first_seen:end]
        query_1QTD = query_1QND[:, :, single.first : single.last]
        if query_1QTD.shape[2] == 1:
            made_1QD = of_one_token_each(query_1QTD[:, :, 0], keys_1HLD, values_1HLD, None, scale)
            out_NQD[single.first] = made_1QD[0]
            return
        groups = query_1QTD.shape[1] // keys_1HLD.shape[1]
        if groups > 1:
            keys_1HLD, values_1HLD = (part.repeat_interleave(groups, dim=1) for part in (keys_1HLD, values_1HLD))
        seen_TL = None if end == query_1QTD.shape[2] and window is None else self._seen(single, first_seen, end, window)
        made_1QTD = F.scaled_dot_product_attention(
            query_1QTD, keys_1HLD, values_1HLD, attn_mask=seen_TL, is_causal=seen_TL is None, scale=scale
        )
        out_NQD[single.first : single.last] = made_1QTD[0].transpose(0, 1)

    def _seen(self, single: _Single, first_seen: int, end: int, window: int | None) -> Tensor:
        """(T, L), made for the first layer with such a window."""
        if (single, window) not in self._piece_masks:
            self._piece_masks[single, window] = self._seen_anew(single, first_seen, end, window)
        return self._piece_masks[single, window]

    def _seen_anew(self, single: _Single, first_seen: int, end: int, window: int | None) -> Tensor:
        position_T1 = self.position_N[single.first : single.last, None]
        position_L = torch.arange(first_seen, end, device=position_T1.device)
        seen_TL = position_L <= position_T1
        return seen_TL if window is None else seen_TL & (position_L > position_T1 - window)


def of_one_token_each(
    query_SQD: Tensor, keys_SHLD: Tensor, values_SHLD: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """(S, H x G, D). The queries of a head of keys stand where a row's tokens would: no key is copied for them."""
    query_SHGD = query_SQD.unflatten(1, (keys_SHLD.shape[1], -1))
    made_SHGD = F.scaled_dot_product_attention(query_SHGD, keys_SHLD, values_SHLD, attn_mask=mask, scale=scale)
    return made_SHGD.flatten(1, 2)


def _slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    slots: SlotStep | None = None,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, Tensor | None]:
    """In slots where the caller names them; else as transformers does it, so that a model is still of use to others."""
    if slots is None:
        made: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **given
        )
        return made
    other = next((name for name in ("softcap", "s_aux", "position_bias") if given.get(name) is not None), None)
    if other is not None:
        raise UnsupportedAttention(f"attention with {other}")
    return slots.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(ATTENTION, _slot_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
