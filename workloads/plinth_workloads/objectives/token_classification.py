"""Give each word of a text one of the labels found in the data.

Words are joined by spaces, so that a text is tokenized as it will be when it is asked about; a word's label is that of
its first token, and its other tokens learn nothing. A text longer than a row goes on in the next one. A document's
numbers are tokens with their labels: id x (L + 1) + label + 1, where label -1 is none.

Shapes: B rows, T tokens, L labels, N labelled tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plinth_api.run import RunSource
from plinth_workloads.data.labelled import LabelledRow, numbers_of, read_labelled
from plinth_workloads.data.loader import IGNORED, Batch, Draw, padded, padded_texts
from plinth_workloads.data.packing import EpochPlan, PieceRows, Segment
from plinth_workloads.data.recipe import DataRecipe
from plinth_workloads.data.token_store import IntArray, TokenizedDocument, TokenStore
from plinth_workloads.objectives.labels import LabelObjective, LabelRecipe, confusion, macro_f1
from plinth_workloads.objectives.objective import MeasuredLoss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int, str]
"""First word, word after the last, and what the entity is."""


class TokenClassification(LabelObjective):
    """The task of labels for words."""

    auto_class = "AutoModelForTokenClassification"
    pipeline_tag = "token-classification"
    pipeline_class = "TokenClassificationPipeline"

    def recipe(self) -> DataRecipe:
        """Words with their labels."""
        return _WordRecipe(self.run)

    def loss(self, model: Any, tokenizer: Any) -> "TokenClassificationLoss":
        """Cross entropy of the label of each word."""
        return TokenClassificationLoss(model, self.labels)

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Loss and accuracy of words, macro F1 of labels, F1 of entities."""
        entities = means["predicted_entities"] + means["true_entities"]
        return {
            "loss": means["loss"],
            "accuracy": means["accuracy"],
            "macroF1": macro_f1(means, len(self.labels)),
            "entityF1": 2 * means["right_entities"] / entities if entities else 0.0,
        }


class TokenClassificationLoss(MeasuredLoss):
    """A text model with a head for the labels of tokens, and its loss summed over the labelled ones."""

    def __init__(self, model: Any, labels: Sequence[str]) -> None:
        super().__init__()
        self.model, self._labels = model, labels

    def compute(self, input_ids_BT: Tensor, attention_mask_BT: Tensor, labels_BT: Tensor) -> dict[str, Tensor]:
        """The summed loss; in evaluation also the right labels, and how often labels and entities are right.

        Args:
            input_ids_BT: Texts.
            attention_mask_BT: 1 for tokens, 0 for padding.
            labels_BT: The label of a word at its first token, IGNORED elsewhere.
        """
        logits_BTL = self.model(input_ids=input_ids_BT, attention_mask=attention_mask_BT).logits.float()
        loss = F.cross_entropy(logits_BTL.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum")
        if self.training:
            return {"loss": loss}
        predicted_BT, counted_BT = logits_BTL.argmax(-1), labels_BT != IGNORED
        predicted_N, true_N = predicted_BT[counted_BT], labels_BT[counted_BT]
        size = len(self._labels)
        return {
            "loss": loss,
            "accuracy": (predicted_N == true_N).sum(),
            **confusion(F.one_hot(predicted_N, size).bool(), F.one_hot(true_N, size).bool()),
            **self._entities(predicted_BT, labels_BT),
        }

    def _entities(self, predicted_BT: Tensor, labels_BT: Tensor) -> dict[str, Tensor]:
        counts = np.zeros(3, np.int64)
        for predicted_T, labels_T in zip(predicted_BT.cpu(), labels_BT.cpu(), strict=True):
            counted_T = labels_T != IGNORED
            found, true = (
                set(entities([self._labels[number] for number in numbers_T[counted_T].tolist()]))
                for numbers_T in (predicted_T, labels_T)
            )
            counts += (len(found & true), len(found), len(true))
        names = ("right_entities", "predicted_entities", "true_entities")
        return dict(zip(names, torch.from_numpy(counts).unbind(), strict=True))


def entities(labels: Sequence[str]) -> list[Span]:
    """The entities that labels of consecutive words tell.

    B-x starts an entity x, I-x goes on with one or starts it, as in the CoNLL evaluation; a label that is neither goes
    on with its like. O is no entity.
    """
    spans: list[Span] = []
    for at, label in enumerate(labels):
        if label == "O":
            continue
        mark, kind = (label[0], label[2:]) if label[:2] in ("B-", "I-") else ("I", label)
        if mark == "I" and spans and spans[-1][1:] == (at, kind):
            spans[-1] = (spans[-1][0], at + 1, kind)
        else:
            spans.append((at, at + 1, kind))
    return spans


class _WordRecipe(LabelRecipe):
    """Texts in pieces of at most a row, each a row of its own."""

    def vocabulary_size(self, tokenizer: Any) -> int:
        """Every token with every label, or with none."""
        return len(tokenizer) * self._num_codes

    def documents(self, source: RunSource, tokenizer: Any, cache: Path) -> Iterator[TokenizedDocument]:
        """The pieces of a source's texts; those without a word learn nothing and are left out."""
        for row in read_labelled(source, self.run, cache):
            labels = numbers_of(row, self.numbers)
            for ids, words in first_tokens(row, tokenizer, self.run.training.sequence_length):
                codes = [0 if word is None else labels[word] + 1 for word in words]
                pairs = zip(ids, codes, strict=True)
                yield TokenizedDocument([token * self._num_codes + code for token, code in pairs])

    def learns_something(self, document: TokenizedDocument) -> bool:
        """Whether a word of it has a token."""
        return any(number % self._num_codes for number in document.ids)

    def labels_in(self, store: TokenStore, documents: IntArray) -> set[int]:
        """The numbers of the labels that some documents have."""
        found: set[int] = set()
        for offset, length in zip(store.offsets[documents], store.lengths[documents], strict=True):
            found.update(np.unique(store.tokens[int(offset) : int(offset + length)] % self._num_codes).tolist())
        return {code - 1 for code in found if code}

    def plan(self, documents: IntArray, store: TokenStore, *, seed: int) -> EpochPlan:
        """A row for each document, in random order."""
        return PieceRows(documents, store.lengths, self.run.training.sequence_length, seed=seed)

    def batcher(self, tokenizer: "PreTrainedTokenizerBase", store: TokenStore, documents: IntArray) -> "_WordRows":
        """What makes the inputs of `TokenClassificationLoss`."""
        width = self.run.training.sequence_length if self.run.training.compile else None
        return _WordRows(store, tokenizer.pad_token_id, self._num_codes, width)

    @property
    def _num_codes(self) -> int:
        return len(self.numbers) + 1


def first_tokens(
    row: LabelledRow, tokenizer: Any, sequence_length: int
) -> Iterator[tuple[list[int], list[int | None]]]:
    """The pieces of a row's text: token ids, and for each token the word that it is the first one of, or None.

    Args:
        row: The words.
        tokenizer: A fast tokenizer.
        sequence_length: Tokens of a piece at most, the tokenizer's marks included.
    """
    starts = np.cumsum([0, *(len(word) + 1 for word in row.texts)])
    encoded = tokenizer(
        " ".join(row.texts),
        truncation=True,
        max_length=sequence_length,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    last = -1
    for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        words: list[int | None] = []
        for begin, end in offsets:
            # The word that the token's last character is in: the space before a word may be a part of its first token.
            word = int(np.searchsorted(starts, end - 1, side="right")) - 1 if end > begin else -1
            is_space = word >= 0 and end - 1 >= starts[word] + len(row.texts[word])
            is_first = word > last and not is_space
            last = word if is_first else last
            words.append(word if is_first else None)
        yield ids, words


class _WordRows:
    """Makes the inputs of `TokenClassificationLoss`."""

    def __init__(self, store: TokenStore, pad_id: int, num_codes: int, width: int | None) -> None:
        self._store, self._pad_id, self._num_codes, self._width = store, pad_id, num_codes, width

    def batch(self, rows: Sequence[Sequence[Segment]], draws: Sequence[Draw]) -> Batch:
        """The tensors of some texts; nothing in them is random."""
        read = [self._read(row) for row in rows]
        ids_BT, mask_BT = padded_texts([tokens for tokens, _ in read], self._pad_id, self._width)
        labels_BT = padded([labels for _, labels in read], ids_BT.shape[1], IGNORED)
        inputs = {"input_ids_BT": ids_BT, "attention_mask_BT": mask_BT, "labels_BT": labels_BT}
        return Batch(inputs, sum(len(tokens) for tokens, _ in read), int((labels_BT != IGNORED).sum()))

    def _read(self, row: Sequence[Segment]) -> tuple[IntArray, IntArray]:
        """Tokens and labels of a text."""
        if not row:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        offset = int(self._store.offsets[row[0].document])
        stored = self._store.tokens[offset + row[0].start : offset + row[0].stop].astype(np.int64)
        tokens, codes = np.divmod(stored, self._num_codes)
        return tokens, np.where(codes > 0, codes - 1, IGNORED)
