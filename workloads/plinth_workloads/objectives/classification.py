"""Give a text, or a pair of texts, one of the labels found in the data, or several of them.

A document is the numbers of its labels, marked as targets, and then its tokens, each as twice its id, and one more in
the second text of a pair.

Shapes: B rows, T tokens, L labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plinth_api.adaptation import Classification as Settings
from plinth_api.run import RunSource, TrainRun
from plinth_workloads.data.labelled import numbers_of, read_labelled
from plinth_workloads.data.loader import IGNORED, Batch, Draw, padded, padded_texts
from plinth_workloads.data.packing import EpochPlan, PieceRows, Segment
from plinth_workloads.data.recipe import DataRecipe
from plinth_workloads.data.token_store import IntArray, TokenizedDocument, TokenStore
from plinth_workloads.objectives.labels import LabelObjective, LabelRecipe, confusion, macro_f1
from plinth_workloads.objectives.objective import MeasuredLoss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 512


class Classification(LabelObjective):
    """The task of labels for whole texts."""

    auto_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    pipeline_class = "TextClassificationPipeline"

    def __init__(self, run: TrainRun) -> None:
        super().__init__(run)
        self._several = Settings.model_validate(run.objective_settings).multi_label
        self.problem_type = "multi_label_classification" if self._several else "single_label_classification"

    def recipe(self) -> DataRecipe:
        """Texts with their labels."""
        return _TextRecipe(self.run)

    def loss(self, model: Any, tokenizer: Any) -> "ClassificationLoss":
        """Cross entropy of the label, or of each label alone where a text may have several."""
        return ClassificationLoss(model, several=self._several)

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Loss, accuracy (of a text's labels together) and macro F1."""
        f1 = macro_f1(means, len(self.labels))
        return {"loss": means["loss"], "accuracy": means["accuracy"], "macroF1": f1}


class ClassificationLoss(MeasuredLoss):
    """A text model with a head for labels, and its loss summed over the texts."""

    def __init__(self, model: Any, *, several: bool) -> None:
        super().__init__()
        self.model, self._several = model, several
        self._tells_pairs = getattr(model.config, "type_vocab_size", 0) > 1

    def compute(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        token_type_ids_BT: Tensor,
        labels_BL: Tensor,
        is_text_B: Tensor,
    ) -> dict[str, Tensor]:
        """The summed loss; in evaluation also the right texts, and how often each label was right, predicted and true.

        Args:
            input_ids_BT: Texts.
            attention_mask_BT: 1 for tokens, 0 for padding.
            token_type_ids_BT: 1 in the second text of a pair, else 0.
            labels_BL: Whether a text has a label.
            is_text_B: False for padding, which counts for nothing.
        """
        types = {"token_type_ids": token_type_ids_BT} if self._tells_pairs else {}
        output = self.model(input_ids=input_ids_BT, attention_mask=attention_mask_BT, **types)
        logits_BL = output.logits.float()
        loss = self._loss(logits_BL, labels_BL, is_text_B)
        if self.training:
            return {"loss": loss}
        predicted_BL = logits_BL > 0
        if not self._several:
            predicted_BL = F.one_hot(logits_BL.argmax(-1), logits_BL.shape[-1]).bool()
        right_B = (predicted_BL == labels_BL).all(-1) & is_text_B
        return {"loss": loss, "accuracy": right_B.sum(), **confusion(predicted_BL[is_text_B], labels_BL[is_text_B])}

    def _loss(self, logits_BL: Tensor, labels_BL: Tensor, is_text_B: Tensor) -> Tensor:
        """For each text the mean over labels where it may have several, as transformers' heads compute it."""
        if self._several:
            loss_BL = F.binary_cross_entropy_with_logits(logits_BL, labels_BL.float(), reduction="none")
            return (loss_BL.mean(-1) * is_text_B).sum()
        label_B = labels_BL.int().argmax(-1).masked_fill(~is_text_B, IGNORED)
        return F.cross_entropy(logits_BL, label_B, ignore_index=IGNORED, reduction="sum")


class _TextRecipe(LabelRecipe):
    """Texts, cut at the row's length, each a row of its own."""

    def vocabulary_size(self, tokenizer: Any) -> int:
        """Twice the tokens, and never fewer than labels."""
        return max(2 * len(tokenizer), len(self.numbers))

    def documents(self, source: RunSource, tokenizer: Any, cache: Path) -> Iterator[TokenizedDocument]:
        """The rows of a source; one without text learns nothing and is left out."""
        length = self.run.training.sequence_length
        remaining = read_labelled(source, self.run, cache)
        while chunk := list(islice(remaining, _CHUNK)):
            texts = list(zip(*(row.texts for row in chunk), strict=True))
            encoded = tokenizer(
                *(list(column) for column in texts),
                truncation=True,
                max_length=length,
                return_token_type_ids=True,
                verbose=False,
            )
            for row, ids, types in zip(chunk, encoded["input_ids"], encoded["token_type_ids"], strict=True):
                labels = numbers_of(row, self.numbers)
                tokens = [2 * token + kind for token, kind in zip(ids, types, strict=True)] if any(row.texts) else []
                yield TokenizedDocument([*labels, *tokens], [True] * len(labels) + [False] * len(tokens))

    def learns_something(self, document: TokenizedDocument) -> bool:
        """Whether there is a text."""
        assert document.targets is not None
        return not all(document.targets)

    def labels_in(self, store: TokenStore, documents: IntArray) -> set[int]:
        """The numbers of the labels that some documents have."""
        assert store.targets is not None
        offsets, lengths = store.offsets[documents], store.lengths[documents]
        spans = [slice(int(offset), int(offset + length)) for offset, length in zip(offsets, lengths, strict=True)]
        return {int(number) for span in spans for number in store.tokens[span][store.targets[span]]}

    def plan(self, documents: IntArray, store: TokenStore, *, seed: int) -> EpochPlan:
        """A row for each document, in random order."""
        return PieceRows(documents, store.lengths, max(1, int(store.lengths.max(initial=1))), seed=seed)

    def batcher(self, tokenizer: "PreTrainedTokenizerBase", store: TokenStore, documents: IntArray) -> "_TextRows":
        """What makes the inputs of `ClassificationLoss`."""
        num_labels = len(self.numbers)
        width = self.run.training.sequence_length if self.run.training.compile else None
        return _TextRows(store, tokenizer.pad_token_id, num_labels, width)


class _TextRows:
    """Makes the inputs of `ClassificationLoss`."""

    def __init__(self, store: TokenStore, pad_id: int, num_labels: int, width: int | None) -> None:
        self._store, self._pad_id, self._num_labels, self._width = store, pad_id, num_labels, width

    def batch(self, rows: Sequence[Sequence[Segment]], draws: Sequence[Draw]) -> Batch:
        """The tensors of some texts; nothing in them is random."""
        read = [self._read(row) for row in rows]
        ids_BT, mask_BT = padded_texts([codes // 2 for codes, _ in read], self._pad_id, self._width)
        types_BT = padded([codes % 2 for codes, _ in read], ids_BT.shape[1], 0)
        labels = np.zeros((len(rows), self._num_labels), np.bool_)
        for index, (_, numbers) in enumerate(read):
            labels[index, numbers] = True
        is_text = torch.tensor([len(row) > 0 for row in rows])
        inputs = {
            "input_ids_BT": ids_BT,
            "attention_mask_BT": mask_BT,
            "token_type_ids_BT": types_BT,
            "labels_BL": torch.from_numpy(labels),
            "is_text_B": is_text,
        }
        return Batch(inputs, sum(len(codes) for codes, _ in read), int(is_text.sum()))

    def _read(self, row: Sequence[Segment]) -> tuple[IntArray, IntArray]:
        if not row:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        assert self._store.targets is not None
        offset = int(self._store.offsets[row[0].document])
        stored = self._store.tokens[offset : offset + row[0].stop].astype(np.int64)
        is_label = self._store.targets[offset : offset + row[0].stop]
        return stored[~is_label], stored[is_label]
