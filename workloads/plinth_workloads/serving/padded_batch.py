"""Rows of any causal language model with a cache of keys and values, padded on the left to the longest row.

For models whose attention cannot be handed to `slot_attention`: positions that are added to it, another kind of
cache. All rows share one cache, so that a row may join or leave between any two steps, at the price of a copy. Virtual
tokens of a model are positions of each row like its own.

Shapes: B rows of the batch, R rows that join, T new positions, L cached positions, V vocabulary, H heads, D head size.
"""

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from plinth_workloads.models.virtual_tokens import num_virtual_tokens
from plinth_workloads.serving.batch import CachedRow, Piece
from plinth_workloads.serving.engine import CacheUse
from plinth_workloads.serving.lora_bank import LoraAdapter, LoraBank

logger = logging.getLogger(__name__)


class PaddedBatch:
    """See Batch.

    Args:
        model: In evaluation mode.
        max_rows: Rows at once.
        max_length: Most tokens of a row.
    """

    reads_in_pieces = False
    adapters: LoraBank | None = None

    def __init__(self, model: Any, *, max_rows: int, max_length: int) -> None:
        self._model, self._max_rows = model, max_rows
        self._max_length = max_length
        accepted = inspect.signature(model.forward).parameters
        self._num_virtual_tokens = num_virtual_tokens(model)
        self._takes_positions = "position_ids" in accepted
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._prompt_tokens = 0
        self.clear()

    def clear(self) -> None:
        """See Batch."""
        self._open: set[CachedRow] = set()
        self._forget_all()

    def open(self, token_ids: Sequence[int], adapter: LoraAdapter | None = None) -> CachedRow | None:
        """See Batch."""
        if len(self._open) == self._max_rows:
            return None
        self._prompt_tokens += len(token_ids)
        row = CachedRow()
        self._open.add(row)
        return row

    def make_room(self, pieces: Sequence[Piece]) -> bool:
        """See Batch."""
        return True

    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        """See Batch."""
        self._keep([at for at, row in enumerate(self._order) if row in self._open])
        by_row = {piece.row: piece for piece in pieces}
        logits_of: dict[CachedRow, Tensor] = {}
        if self._order:
            stepped_BV = self._step([by_row[row].token_ids[0] for row in self._order])
            logits_of |= dict(zip(self._order, stepped_BV, strict=True))
        new = [piece for piece in pieces if piece.row.length == 0]
        if new:
            joined_RV = self._join([piece.token_ids for piece in new])
            logits_of |= dict(zip([piece.row for piece in new], joined_RV, strict=True))
            self._order += [piece.row for piece in new]
        for piece in pieces:
            piece.row.length += len(piece.token_ids)
        return torch.stack([logits_of[piece.row] for piece in pieces])

    def close(self, row: CachedRow, *, spoiled: bool = False) -> None:
        """See Batch."""
        self._open.discard(row)

    def compile(self) -> None:
        """See Batch. Their sizes change with every row that comes or goes: nothing is compiled."""
        logger.warning("%s is decoded in padded rows, which are not compiled", type(self._model).__name__)

    def use(self) -> CacheUse:
        """See Batch."""
        used = sum(row.length for row in list(self._open))
        return CacheUse(used, self._max_rows * self._max_length, self._prompt_tokens, 0)

    def _forget_all(self) -> None:
        self._order: list[CachedRow] = []
        self._cache: DynamicCache | None = None
        self._mask_BL = torch.zeros(0, 0, dtype=torch.long, device=self._model.device)

    def _join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts and append them to the rows of the batch: logits (R, V) after each, in float32."""
        longest = max(len(prompt) for prompt in prompts)
        device = self._model.device
        ids_RT = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask_RT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        cache = DynamicCache()
        logits_RV = self._forward(ids_RT, mask_RT, cache)
        if self._num_virtual_tokens:
            cache, mask_RT = _padding_first(cache, F.pad(mask_RT, (self._num_virtual_tokens, 0), value=1))
        if self._cache is None:
            self._cache, self._mask_BL = cache, mask_RT
        else:
            self._cache, self._mask_BL = _merged(self._cache, cache), _stacked(self._mask_BL, mask_RT, dim=-1)
        return logits_RV

    def _step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to each row: logits (B, V) after it, in float32."""
        assert self._cache is not None
        self._mask_BL = F.pad(self._mask_BL, (0, 1), value=1)
        ids_B1 = torch.tensor(tokens, device=self._model.device)[:, None]
        return self._forward(ids_B1, self._mask_BL, self._cache)

    def _keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and the columns that only they used."""
        if len(rows) == len(self._order):
            return
        if not rows:
            self._forget_all()
            return
        assert self._cache is not None
        index_R = torch.tensor(rows, device=self._mask_BL.device)
        mask_RL = self._mask_BL[index_R]
        length = int(mask_RL.sum(dim=-1).max())
        self._mask_BL = mask_RL[:, -length:]
        self._order = [self._order[row] for row in rows]
        self._cache = _cache_of(
            (keys[index_R, :, -length:], values[index_R, :, -length:]) for keys, values in _layers(self._cache)
        )

    def _forward(self, ids_BT: Tensor, mask_BL: Tensor, cache: DynamicCache) -> Tensor:
        inputs: dict[str, Any] = dict(self._last_only)
        if self._takes_positions:
            positions_BL = (mask_BL.cumsum(dim=-1) - 1).clamp(min=0)
            inputs["position_ids"] = positions_BL[:, -ids_BT.shape[1] :]
        output = self._model(input_ids=ids_BT, attention_mask=mask_BL, past_key_values=cache, use_cache=True, **inputs)
        return output.logits[:, -1].float()


def _layers(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _cache_of(layers: Any) -> DynamicCache:
    cache = DynamicCache()
    for index, (keys_BHLD, values_BHLD) in enumerate(layers):
        cache.update(keys_BHLD, values_BHLD, index)
    return cache


def _padding_first(cache: DynamicCache, mask_RL: Tensor) -> tuple[DynamicCache, Tensor]:
    """Move each row's padding before its virtual tokens, which were put before the padding."""
    order_RL = mask_RL.argsort(dim=-1, stable=True)
    order_R1L1 = order_RL[:, None, :, None]
    moved = _cache_of(
        (keys.gather(2, order_R1L1.expand_as(keys)), values.gather(2, order_R1L1.expand_as(values)))
        for keys, values in _layers(cache)
    )
    return moved, mask_RL.gather(1, order_RL)


def _merged(old: DynamicCache, new: DynamicCache) -> DynamicCache:
    return _cache_of(
        (_stacked(old_keys, new_keys, dim=-2), _stacked(old_values, new_values, dim=-2))
        for (old_keys, old_values), (new_keys, new_values) in zip(_layers(old), _layers(new), strict=True)
    )


def _stacked(upper: Tensor, lower: Tensor, *, dim: int) -> Tensor:
    """Rows of both; zeros before the shorter along `dim`, which is -1 or -2."""
    length = max(upper.shape[dim], lower.shape[dim])
    after = (0, 0) * (-1 - dim)
    padded = [F.pad(part, (*after, length - part.shape[dim], 0)) for part in (upper, lower)]
    return torch.cat(padded)
