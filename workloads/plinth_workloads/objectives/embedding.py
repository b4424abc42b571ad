"""Embed queries close to what answers them, and far from everything else of the step.

A document's numbers are the tokens of three texts, the last of which may be missing: id x 3 + part.

Shapes: B queries of this process, M texts of this process (two or three times B), N queries of all processes, T tokens,
D dimensions.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from plinth_api.run import RunSource
from plinth_workloads.data.loader import Batch, Draw, padded_texts
from plinth_workloads.data.packing import EpochPlan, PieceRows, Segment
from plinth_workloads.data.paired import read_pairs
from plinth_workloads.data.recipe import DataRecipe
from plinth_workloads.data.token_store import IntArray, TokenizedDocument, TokenStore
from plinth_workloads.objectives.contrastive_text import ContrastiveLoss, ContrastiveText, Partners

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 512
_PARTS = 3
"""Query, positive, negative."""


class Embedding(ContrastiveText):
    """The task of embeddings, contrastiveText with negatives that the data names."""

    def recipe(self) -> DataRecipe:
        """Queries with their texts."""
        return _QueryRecipe(self.run)

    def loss(self, model: Any, tokenizer: Any) -> "EmbeddingLoss":
        """Cross entropy of finding the positive among all texts, and the query among all queries."""
        return EmbeddingLoss(model, self.temperature)


class EmbeddingLoss(ContrastiveLoss):
    """A text model with the loss of `ContrastiveLoss`, in which a query has to pass over negatives as well."""

    def compute(  # type: ignore[override]
        self, input_ids_MT: Tensor, attention_mask_MT: Tensor, is_pair_B: Tensor, is_negative_B: Tensor
    ) -> dict[str, Tensor]:
        """Loss, queries whose nearest text is their positive, and reciprocal ranks of the positives, summed.

        Args:
            input_ids_MT: All queries, then their positives, then, if the data has some, their negatives.
            attention_mask_MT: 1 for tokens, 0 for padding.
            is_pair_B: False for padding, which is nobody's partner.
            is_negative_B: Whether a query has a negative.
        """
        query_BD, positive_BD, *negative_BD = self.embedded(input_ids_MT, attention_mask_MT).split(len(is_pair_B))
        pairs = Partners.of(is_pair_B, self.training)
        to_texts = pairs.masked(query_BD @ pairs.gathered(positive_BD).T / self.temperature)
        for texts_BD in negative_BD:
            negatives = Partners.of(is_negative_B, self.training)
            logits_BN = negatives.masked(query_BD @ negatives.gathered(texts_BD).T / self.temperature)
            to_texts = torch.cat([to_texts, logits_BN], dim=1)
        to_queries_BN = pairs.masked(positive_BD @ pairs.gathered(query_BD).T / self.temperature)
        own_B1 = to_texts.detach().gather(1, pairs.mine_B[:, None])
        rank_B = 1 + (to_texts.detach() > own_B1).sum(1)
        return {
            "loss": (pairs.loss(to_texts) + pairs.loss(to_queries_BN)) / 2,
            "accuracy": (rank_B == 1)[is_pair_B].sum(),
            "mrr": (1 / rank_B)[is_pair_B].sum(),
        }


class _QueryRecipe(DataRecipe):
    """A row for each query."""

    puts_marks = True

    def vocabulary_size(self, tokenizer: Any) -> int:
        """Every token in each part."""
        return _PARTS * len(tokenizer)

    def documents(self, source: RunSource, tokenizer: Any, cache: Path) -> Iterator[TokenizedDocument]:
        """The rows of a source; one without a query or a positive is left out."""
        remaining = read_pairs(source, self.run, cache)
        length = self.run.training.sequence_length
        while chunk := list(islice(remaining, _CHUNK)):
            encoded = [
                tokenizer(list(texts), truncation=True, max_length=length, verbose=False)["input_ids"]
                for texts in zip(*chunk, strict=True)
            ]
            for texts, parts in zip(chunk, zip(*encoded, strict=True), strict=True):
                # A tokenizer's marks are no text.
                kept = [ids if text else [] for text, ids in zip(texts, parts, strict=True)]
                whole = kept if kept[0] and kept[1] else []
                yield TokenizedDocument([_PARTS * token + part for part, ids in enumerate(whole) for token in ids])

    def learns_something(self, document: TokenizedDocument) -> bool:
        """Whether there are a query and a positive."""
        return len(document.ids) > 0

    def plan(self, documents: IntArray, store: TokenStore, *, seed: int) -> EpochPlan:
        """A row for each document, in random order."""
        return PieceRows(documents, store.lengths, _PARTS * self.run.training.sequence_length, seed=seed)

    def batcher(self, tokenizer: "PreTrainedTokenizerBase", store: TokenStore, documents: IntArray) -> "_QueryRows":
        """What makes the inputs of `EmbeddingLoss`."""
        width = self.run.training.sequence_length if self.run.training.compile else None
        return _QueryRows(store, tokenizer.pad_token_id, width)


class _QueryRows:
    """Makes the inputs of `EmbeddingLoss`."""

    def __init__(self, store: TokenStore, pad_id: int, width: int | None) -> None:
        self._store, self._pad_id, self._width = store, pad_id, width
        # Of the whole data, for every worker has to compute as many texts.
        self._num_parts = _PARTS if _has_negatives(store) else _PARTS - 1

    def batch(self, rows: Sequence[Sequence[Segment]], draws: Sequence[Draw]) -> Batch:
        """The tensors of some queries; nothing in them is random."""
        read = [self._texts(row) for row in rows]
        texts = [parts[part] for part in range(self._num_parts) for parts in read]
        ids_MT, mask_MT = padded_texts(texts, self._pad_id, self._width)
        is_pair = torch.tensor([len(row) > 0 for row in rows])
        inputs = {
            "input_ids_MT": ids_MT,
            "attention_mask_MT": mask_MT,
            "is_pair_B": is_pair,
            "is_negative_B": torch.tensor([len(parts[2]) > 0 for parts in read]),
        }
        return Batch(inputs, sum(map(len, texts)), int(is_pair.sum()))

    def _texts(self, row: Sequence[Segment]) -> list[IntArray]:
        if not row:
            return [np.zeros(0, np.int64)] * _PARTS
        offset = int(self._store.offsets[row[0].document])
        tokens, parts = np.divmod(self._store.tokens[offset : offset + row[0].stop].astype(np.int64), _PARTS)
        return [tokens[parts == part] for part in range(_PARTS)]


def _has_negatives(store: TokenStore) -> bool:
    negative, size = _PARTS - 1, 2**20
    parts = (store.tokens[start : start + size] % _PARTS for start in range(0, len(store.tokens), size))
    return any(bool((part == negative).any()) for part in parts)
