"""Restore spans that were replaced by sentinels: T5.

Shapes: B rows, S tokens of the encoder, T tokens of the decoder, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from plinth_api.objectives import SpanDenoising as Settings
from plinth_api.run import TrainRun
from plinth_workloads.data.formats import Example
from plinth_workloads.data.loader import IGNORED, Batch, Draw, padded
from plinth_workloads.data.packing import EpochPlan, PieceRows, Segment
from plinth_workloads.data.recipe import DataRecipe
from plinth_workloads.data.token_store import IntArray, TokenizedDocument, TokenStore
from plinth_workloads.errors import UserError
from plinth_workloads.objectives.objective import MeasuredLoss, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTINELS = ("<extra_id_{}>", "<|sentinel_{}|>")
"""How T5's tokenizers spell the sentinel of a span, and how a tokenizer trained here does."""


class SpanDenoising(Objective):
    """The objective of encoder-decoders."""

    auto_class = "AutoModelForSeq2SeqLM"
    pipeline_tag = "text2text-generation"

    def __init__(self, run: TrainRun) -> None:
        super().__init__(run)
        self._settings = Settings.model_validate(run.objective_settings)

    def recipe(self) -> DataRecipe:
        """Pieces of documents with spans cut out."""
        return _SpanRecipe(self.run, self._settings)

    def implied_config(self, tokenizer: Any) -> Mapping[str, Any]:
        """A decoder starts with the padding token, as T5's does."""
        return {} if self.run.model.uri else {"decoder_start_token_id": tokenizer.pad_token_id}

    def check(self, model: Any, tokenizer: Any) -> None:
        """Refuse a tokenizer with fewer sentinels than a row can have spans."""
        needed, found = _max_spans(self.run, self._settings), len(sentinel_ids(tokenizer))
        if found < needed:
            raise UserError(
                "InvalidSpec",
                f"spec.objective.spanDenoising: rows of {self.run.training.sequence_length} tokens have up to {needed} "
                f"spans, the tokenizer has {found} sentinels ({_SENTINELS[0].format(0)}, ...); lower "
                "spec.training.sequenceLength, raise meanSpanLength, or use a tokenizer that has more",
            )

    def loss(self, model: Any, tokenizer: Any) -> "SpanDenoisingLoss":
        """Cross entropy of the spans."""
        return SpanDenoisingLoss(model)


class SpanDenoisingLoss(MeasuredLoss):
    """An encoder-decoder with the cross entropy of what the decoder is to write, summed."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def compute(self, input_ids_BS: Tensor, attention_mask_BS: Tensor, labels_BT: Tensor) -> dict[str, Tensor]:
        """Loss and right answers, summed over the labels that are not IGNORED."""
        logits_BTV = self.model(
            input_ids=input_ids_BS,
            attention_mask=attention_mask_BS,
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels_BT),
            use_cache=False,
        ).logits
        loss = F.cross_entropy(
            logits_BTV.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return {"loss": loss, "accuracy": (logits_BTV.detach().argmax(-1) == labels_BT).sum()}


def sentinel_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that stand for a row's first span, second span, ..."""
    vocabulary = tokenizer.get_vocab()
    for pattern in _SENTINELS:
        found: list[int] = []
        while pattern.format(len(found)) in vocabulary:
            found.append(vocabulary[pattern.format(len(found))])
        if found:
            return found
    return []


def span_lengths(length: int, settings: Settings, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """How long the kept and the replaced spans of a text are, in turn; the first one is kept.

    The number of replaced tokens and of spans follows from the length alone, only their division is random
    (https://arxiv.org/abs/1910.10683, 3.1.4).

    Returns:
        Lengths of kept and of replaced spans, [num_spans] each, none of them 0; none at all for a text of one token.
    """
    if length < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    replaced = min(max(round(length * settings.noise_density), 1), length - 1)
    spans = min(max(round(replaced / settings.mean_span_length), 1), replaced, length - replaced)
    return _divide(length - replaced, spans, rng), _divide(replaced, spans, rng)


def _divide(total: int, parts: int, rng: np.random.Generator) -> IntArray:
    """`total` as a sum of positive numbers, each division as likely as another."""
    borders = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], borders, [total]]))


def _max_spans(run: TrainRun, settings: Settings) -> int:
    kept, _ = span_lengths(run.training.sequence_length, settings, np.random.default_rng(0))
    return len(kept)


class _SpanRecipe(DataRecipe):
    """Documents in pieces of at most a row's length; a row is what the encoder would read were nothing replaced."""

    def __init__(self, run: TrainRun, settings: Settings) -> None:
        super().__init__(run)
        self._settings = settings

    def special_tokens(self) -> Mapping[str, str]:
        num_sentinels = _max_spans(self.run, self._settings)
        return {f"sentinel_{at}": _SENTINELS[1].format(at) for at in range(num_sentinels)}

    def tokenize(
        self, examples: Iterable[Example], tokenizer: "PreTrainedTokenizerBase"
    ) -> Iterator[TokenizedDocument]:
        # The end of a text is written when the row is made, for a piece has none.
        for document in super().tokenize(examples, tokenizer):
            yield TokenizedDocument(document.ids[:-1])

    def learns_something(self, document: TokenizedDocument) -> bool:
        return len(document.ids) > 1

    def plan(self, documents: IntArray, store: TokenStore, *, seed: int) -> EpochPlan:
        return PieceRows(documents, store.lengths, self.run.training.sequence_length, seed=seed)

    def batcher(self, tokenizer: "PreTrainedTokenizerBase", store: TokenStore, documents: IntArray) -> "_SpanRows":
        return _SpanRows(self.run, self._settings, tokenizer, store)


class _SpanRows:
    """Makes the inputs of `SpanDenoisingLoss`."""

    def __init__(
        self, run: TrainRun, settings: Settings, tokenizer: "PreTrainedTokenizerBase", store: TokenStore
    ) -> None:
        self._seed, self._settings, self._store = run.training.seed, settings, store
        self._end, self._pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self._sentinels = np.array(sentinel_ids(tokenizer), np.int64)
        length = run.training.sequence_length
        replaced = math.ceil(length * settings.noise_density) + 1
        # Compiled code wants one shape; no row has more tokens or spans than a full one.
        self._widths = (length + 1, replaced + len(self._sentinels) + 2) if run.training.compile else None

    def batch(self, rows: Sequence[Sequence[Segment]], draws: Sequence[Draw]) -> Batch:
        """The tensors of some rows, the spans of each drawn by its own random numbers."""
        made = [self._row(row, draw) for row, draw in zip(rows, draws, strict=True)]
        sources, targets = [source for source, _ in made], [target for _, target in made]
        width_S, width_T = self._widths or (max(map(len, sources)), max(map(len, targets)))
        labels_BT = padded(targets, width_T, IGNORED)
        inputs = {
            "input_ids_BS": padded(sources, width_S, self._pad),
            "attention_mask_BS": padded([np.ones(len(source), np.int64) for source in sources], width_S, 0),
            "labels_BT": labels_BT,
        }
        num_tokens = sum(segment.stop - segment.start for row in rows for segment in row)
        return Batch(inputs, num_tokens, int((labels_BT != IGNORED).sum()))

    def _row(self, row: Sequence[Segment], draw: Draw) -> tuple[IntArray, IntArray]:
        """What the encoder reads, with sentinels for spans; what the decoder writes, each span after its sentinel."""
        end = np.array([self._end], np.int64)
        if not row:
            return end, np.array([IGNORED], np.int64)
        (piece,) = row
        offset = int(self._store.offsets[piece.document])
        tokens = self._store.tokens[offset + piece.start : offset + piece.stop].astype(np.int64)
        kept, replaced = span_lengths(len(tokens), self._settings, np.random.default_rng([self._seed, *draw]))
        source: list[IntArray] = []
        target: list[IntArray] = []
        at = 0
        for sentinel, num_kept, num_replaced in zip(self._sentinels, kept, replaced, strict=False):
            source += [tokens[at : at + num_kept], np.array([sentinel])]
            target += [np.array([sentinel]), tokens[at + num_kept : at + num_kept + num_replaced]]
            at += num_kept + num_replaced
        return np.concatenate([*source, tokens[at:], end]), np.concatenate([*target, end])
