"""Rows in slots: the keys and values of each in a place of its own, written in place, found again by their beginnings.

A step reads one token of each row that makes text and pieces of prompts, all in one sequence without padding. A row
that is closed leaves its keys and values in its slot until another needs it; a new row takes over the beginning that it
shares with any slot. Virtual tokens of a model are computed once and are the first positions of every slot.

All slots are equally long, and grow with the longest row; where memory is short, longer slots are fewer.

Shapes: S slots, H heads of keys, C capacity of a slot, D head size, N tokens of a step, R pieces, V vocabulary.
"""

import inspect
import logging
from collections.abc import Sequence
from functools import partial
from itertools import count, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from plinth_workloads.models.output_difference import output_bound, output_difference
from plinth_workloads.models.virtual_tokens import num_virtual_tokens, without_virtual_tokens
from plinth_workloads.serving.batch import CachedRow, Piece
from plinth_workloads.serving.compiled_model import CompiledModel, is_one_token_each
from plinth_workloads.serving.engine import CacheUse
from plinth_workloads.serving.lazy_zeros import lazy_zeros
from plinth_workloads.serving.lora_bank import LoraAdapter, LoraBank
from plinth_workloads.serving.prefix_index import PrefixIndex
from plinth_workloads.serving.slot_attention import ATTENTION, SlotStep, UnsupportedAttention, rung

logger = logging.getLogger(__name__)

_LEAST_CAPACITY = 256
_PROBE_TOKENS = 24
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Of the largest logit; what adds in another order differs by far less, another kind of attention by far more."""
_HALF_TOLERANCE = 5e-2


class SlottedBatch:
    """See Batch.

    Args:
        model: In evaluation mode; its attention is `slot_attention` from now on.
        virtual: Per layer the keys and the values (1, H, P, D) of its P virtual tokens, which may be none.
        windows: Per layer, how many positions a token sees; None for all.
        max_rows: Rows at once.
        max_length: Most tokens of a row.
        max_bytes: Of all keys and values; one row of `max_length` is held in any case.
    """

    reads_in_pieces = True

    def __init__(
        self,
        model: Any,
        virtual: Sequence[tuple[Tensor, Tensor]],
        windows: Sequence[int | None],
        *,
        max_rows: int,
        max_length: int,
        max_bytes: int,
    ) -> None:
        self._model, self._windows, self._max_rows = model, windows, max_rows
        self._virtual, self._num_virtual = virtual, virtual[0][0].shape[2]
        position_bytes = sum(part.shape[1] * part.shape[3] * part.element_size() for pair in virtual for part in pair)
        self._longest = self._num_virtual + max_length
        self._max_positions = max(max_bytes // position_bytes, self._longest)
        self._takes_kept = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.adapters: LoraBank | None = LoraBank(model)
        self._prompt_tokens, self._reused_tokens = 0, 0
        # transformers takes a mask of four dimensions for a finished one; without, it would make one in every step.
        self._no_mask = torch.zeros(1, 1, 1, 1, device=model.device)
        model.set_attn_implementation(ATTENTION)
        self._compiled: CompiledModel | None = None
        self.clear()

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self._virtual[0][0].dtype

    def clear(self) -> None:
        """See Batch."""
        self._keys, self._values = (
            [pair[part].new_zeros(0, pair[part].shape[1], 0, pair[part].shape[3]) for pair in self._virtual]
            for part in (0, 1)
        )
        self._rows: list[CachedRow | None] = []
        self._capacity = 0
        self._prefixes = PrefixIndex()
        self._closed_at: dict[int, int] = {}
        self._clock = count()

    def open(self, token_ids: Sequence[int], adapter: LoraAdapter | None = None) -> CachedRow | None:
        """See Batch."""
        if None not in self._rows and not self._widen(len(token_ids)):
            return None
        # At least one token is read, as its logits are asked for.
        salt = adapter.salt if adapter else ""
        sources, num_reused = self._prefixes.find(token_ids[: len(token_ids) - 1], salt)
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        taken_over = next((slot for slot in free if slot in sources), None)
        if taken_over is not None:
            slot = self._to_lowest(taken_over, free, num_kept=self._num_virtual + num_reused)
        else:
            oldest = min(free, key=lambda one: (self._prefixes.holds(one), self._closed_at.get(one, -1), one))
            slot = self._to_lowest(oldest, free, num_kept=0)
            if sources:
                self._copy(min(sources), slot, self._num_virtual + num_reused)
            else:
                self._write_virtual(slot)
        self._prefixes.begin(slot, salt)
        self._prefixes.extend(slot, token_ids[:num_reused])
        self._prompt_tokens += len(token_ids)
        self._reused_tokens += num_reused
        row = self._rows[slot] = CachedRow(length=num_reused, slot=slot, adapter=adapter)
        return row

    def make_room(self, pieces: Sequence[Piece]) -> bool:
        """See Batch."""
        longest = self._num_virtual + max(piece.row.length + len(piece.token_ids) for piece in pieces)
        if longest <= self._capacity:
            return True
        capacity = self._capacity_for(longest)
        if self._num_slots(capacity) < sum(row is not None for row in self._rows):
            return False
        self._reshape(min(self._num_slots(capacity), len(self._rows)), capacity)
        return True

    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        """See Batch."""
        order = sorted(range(len(pieces)), key=lambda at: (len(pieces[at].token_ids) > 1, pieces[at].row.slot))
        sorted_pieces = [pieces[at] for at in order]
        logits_RV = self._forward(sorted_pieces)
        for piece in sorted_pieces:
            self._prefixes.extend(piece.row.slot, piece.token_ids)
            piece.row.length += len(piece.token_ids)
        if order == list(range(len(pieces))):
            return logits_RV
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return logits_RV[back.to(logits_RV.device)]

    def close(self, row: CachedRow, *, spoiled: bool = False) -> None:
        """See Batch."""
        self._rows[row.slot] = None
        self._closed_at[row.slot] = next(self._clock)
        if spoiled:
            # What is masked still enters sums, times zero: nothing that is not a number may stay behind.
            self._prefixes.forget(row.slot)
            for part in (*self._keys, *self._values):
                part[row.slot].zero_()

    def compile(self) -> None:
        """See Batch."""
        compiled = CompiledModel(self._model, self._windows, self._no_mask)
        try:
            # One row, and then several: what there is one of is compiled apart.
            differences = [self._compiled_difference(compiled, min(num, self._max_rows)) for num in (1, 3)]
            difference = next((one for one in differences if one is not None), None)
        except Exception as error:
            difference = str(error).splitlines()[0] if str(error) else type(error).__name__
        self.clear()
        if difference is None:
            self._compiled = compiled
        else:
            logger.warning("%s is not compiled: %s", type(self._model).__name__, difference)

    def use(self) -> CacheUse:
        """See Batch."""
        used = sum(self._num_virtual + row.length for row in list(self._rows) if row is not None)
        total = min(self._max_rows * self._longest, self._max_positions)
        return CacheUse(used, total, self._prompt_tokens, self._reused_tokens)

    def _forward(self, pieces: Sequence[Piece]) -> Tensor:
        rows = self._rows_of(pieces)
        adapters = [(piece.row.adapter, len(piece.token_ids)) for piece in pieces]
        compiled = None if any(adapter for adapter, _ in adapters) else self._compiled
        assert self.adapters is not None
        with without_virtual_tokens(self._model), self.adapters.using(adapters):
            if compiled is None:
                return self._as_read(rows, pieces).float()
            return self._as_compiled(compiled, rows, pieces, compile=False).float()

    def _rows_of(self, pieces: Sequence[Piece]) -> list[tuple[int, int, int]]:
        """Slot, first position and number of tokens."""
        return [(piece.row.slot, self._num_virtual + piece.row.length, len(piece.token_ids)) for piece in pieces]

    def _as_read(self, rows: Sequence[tuple[int, int, int]], pieces: Sequence[Piece]) -> Tensor:
        step = SlotStep(self._keys, self._values, self._windows, rows)
        device = step.position_N.device
        last_R = _last_tokens(pieces).to(device)
        kept: dict[str, Any] = {"logits_to_keep": last_R} if self._takes_kept else {}
        output = self._model(
            input_ids=torch.tensor([_tokens_of(pieces)], device=device),
            attention_mask=self._no_mask,
            position_ids=step.position_N[None],
            use_cache=False,
            slots=step,
            **kept,
        )
        logits_RV: Tensor = output.logits[0] if kept else output.logits[0, last_R]
        return logits_RV

    def _as_compiled(
        self, model: CompiledModel, rows: Sequence[tuple[int, int, int]], pieces: Sequence[Piece], *, compile: bool
    ) -> Tensor:
        token_ids = _tokens_of(pieces)
        if is_one_token_each(rows):
            return model.decode(token_ids, [row[:2] for row in rows], self._keys, self._values, compile=compile)
        if not self._takes_kept:
            return self._as_read(rows, pieces)
        step = SlotStep(self._keys, self._values, self._windows, rows)
        return model.read(step, token_ids, _last_tokens(pieces).to(step.position_N.device), compile=compile)

    def _compiled_difference(self, compiled: CompiledModel, num_rows: int) -> str | None:
        """How the logits of so many rows differ when they are compiled, which this does; None where they do not."""
        rows = [row for row in (self.open([1]) for _ in range(num_rows)) if row is not None]
        bound_of = partial(output_bound, tolerance=_TOLERANCE.get(self.dtype, _HALF_TOLERANCE))
        prompts = [Piece(row, [1] * (5 + place)) for place, row in enumerate(rows)]
        self.make_room(prompts)
        for pieces in (prompts, [Piece(row, [1]) for row in rows]):
            expected_RV = self._forward(pieces)
            with without_virtual_tokens(self._model):
                given_RV = self._as_compiled(compiled, self._rows_of(pieces), pieces, compile=True).float()
            difference = output_difference(given_RV, expected_RV, bound=bound_of(expected_RV))
            if difference is not None:
                return difference
            for piece in pieces:
                piece.row.length += len(piece.token_ids)
        return None

    def _capacity_for(self, longest: int) -> int:
        """Of each slot, where the longest row has so many positions."""
        return rung(longest, _LEAST_CAPACITY, self._longest)

    def _num_slots(self, capacity: int) -> int:
        return min(self._max_rows, self._max_positions // capacity)

    def _widen(self, num_tokens: int) -> bool:
        """Make more slots where that can be; where only shorter ones can, once the long rows have gone."""
        lengths = [num_tokens, *(row.length for row in self._rows if row is not None)]
        least = self._capacity_for(self._num_virtual + max(lengths) + 1)
        for capacity in (max(least, self._capacity), least):
            if self._num_slots(capacity) > len(self._rows):
                # Twice as many at a time: memory is taken for the rows that come, not for those that could.
                self._reshape(min(self._num_slots(capacity), max(4, 2 * len(self._rows))), capacity)
                return True
        return False

    def _reshape(self, num_slots: int, capacity: int) -> None:
        """Rows in work are kept, and of the others as many as fit, the latest first."""
        closed = (slot for slot, row in enumerate(self._rows) if row is None and self._prefixes.holds(slot))
        working = [slot for slot, row in enumerate(self._rows) if row is not None]
        latest = sorted(closed, key=lambda slot: -self._closed_at.get(slot, -1))
        kept = sorted([*working, *latest][:num_slots])
        # What no row has reached is not copied: it may be most of all slots.
        held = max((self._num_virtual + self._prefixes.num_tokens(slot) for slot in kept), default=0)
        common = min(capacity, held)
        for parts in (self._keys, self._values):
            for layer, part in enumerate(parts):
                parts[layer] = lazy_zeros((num_slots, part.shape[1], capacity, part.shape[3]), like=part)
                parts[layer][: len(kept), :, :common] = part[kept, :, :common]
        rows = [self._rows[slot] for slot in kept]
        self._rows = [*rows, *([None] * (num_slots - len(kept)))]
        for slot, row in enumerate(rows):
            if row is not None:
                row.slot = slot
        self._closed_at = {new: self._closed_at[old] for new, old in enumerate(kept) if old in self._closed_at}
        self._prefixes.move({old: new for new, old in enumerate(kept)}, max_tokens=capacity - self._num_virtual)
        self._capacity = capacity

    def _to_lowest(self, slot: int, free: Sequence[int], *, num_kept: int) -> int:
        """The lowest free slot, which has the first positions of `slot` from now on: rows in work stay side by side.

        What it held goes to `slot`, to be found there.
        """
        lowest = free[0]
        if lowest == slot:
            return slot
        num_held = self._num_virtual + self._prefixes.num_tokens(lowest)
        for part in (*self._keys, *self._values):
            kept = part[slot, :, :num_kept].clone()
            part[slot, :, :num_held] = part[lowest, :, :num_held]
            part[lowest, :, :num_kept] = kept
        self._prefixes.exchange(slot, lowest)
        self._closed_at[slot], self._closed_at[lowest] = self._closed_at.get(lowest, -1), self._closed_at.get(slot, -1)
        return lowest

    def _copy(self, source: int, target: int, length: int) -> None:
        for part in (*self._keys, *self._values):
            part[target, :, :length] = part[source, :, :length]

    def _write_virtual(self, slot: int) -> None:
        if not self._num_virtual:
            return
        for parts, virtual in ((self._keys, 0), (self._values, 1)):
            for part, pair in zip(parts, self._virtual, strict=True):
                part[slot, :, : self._num_virtual] = pair[virtual][0]


def slotted_batch(model: Any, *, max_rows: int, max_length: int, max_bytes: int) -> SlottedBatch | None:
    """Slots for a model, or None where its attention is of another kind.

    That is not only asked of its class but tried: some tokens are read by the model as it is, and in slots.
    """
    layers = DynamicCache(config=model.config).layers
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    known = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    if not (takes_positions and known and layers and model._supports_attention_backend):
        return None
    implementation = model.config._attn_implementation
    windows = [getattr(layer, "sliding_window", None) for layer in layers]
    with torch.inference_mode():
        num_tokens = min(_PROBE_TOKENS, max_length)
        ids = [1 + token % (model.get_input_embeddings().num_embeddings - 1) for token in range(num_tokens)]
        expected_TV = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float()
        try:
            make = partial(
                SlottedBatch,
                model,
                _virtual_tokens(model),
                windows,
                max_rows=max_rows,
                max_length=max_length,
                max_bytes=max_bytes,
            )
            difference = _difference(make(), ids, expected_TV)
        except Exception as error:
            difference = str(error) or type(error).__name__
    if difference is None:
        return make()
    logger.info("%s is decoded in padded rows, not in slots: %s", type(model).__name__, difference)
    model.set_attn_implementation(implementation)
    return None


def _virtual_tokens(model: Any) -> list[tuple[Tensor, Tensor]]:
    """Per layer their keys and values; also where there are none, for the sizes."""
    cache, num_virtual = DynamicCache(config=model.config), num_virtual_tokens(model)
    model(input_ids=torch.ones(1, 1, dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True)
    if any(layer.keys.shape[2] != num_virtual + 1 for layer in cache.layers):
        raise UnsupportedAttention("a sliding window that is shorter than the virtual tokens")
    return [
        (layer.keys[:, :, :num_virtual].clone(), layer.values[:, :, :num_virtual].clone()) for layer in cache.layers
    ]


def _difference(batch: SlottedBatch, ids: Sequence[int], expected_TV: Tensor) -> str | None:
    """How the logits after the last tokens differ in slots, where the others are read in pieces; None where not."""
    row = batch.open(ids)
    assert row is not None
    borders = [0, len(ids) // 2, *range(max(1, len(ids) // 2 + 1, len(ids) - 3), len(ids) + 1)]
    bound = output_bound(expected_TV, _TOLERANCE.get(batch.dtype, _HALF_TOLERANCE))
    for first, last in pairwise(sorted(set(borders))):
        pieces = [Piece(row, ids[first:last])]
        batch.make_room(pieces)
        difference = output_difference(batch.forward(pieces)[0], expected_TV[last - 1], bound=bound)
        if difference is not None:
            return difference
    return None


def _tokens_of(pieces: Sequence[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids]


def _last_tokens(pieces: Sequence[Piece]) -> Tensor:
    """(R,), their places among the tokens of a step."""
    return torch.tensor([len(piece.token_ids) for piece in pieces]).cumsum(0) - 1
