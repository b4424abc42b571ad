"""Predict hidden tokens from both sides, and whether a text goes on with another: BERT.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plinth_api.objective_rules import NEXT_SENTENCE_METRIC
from plinth_api.objectives import MaskedLM as Settings
from plinth_api.run import TrainRun
from plinth_workloads.data.formats import Example
from plinth_workloads.data.loader import IGNORED, Batch, Draw, padded
from plinth_workloads.data.masking import Masker
from plinth_workloads.data.packing import ConcatenatedRows, EpochPlan, PieceRows, Segment
from plinth_workloads.data.recipe import DataRecipe
from plinth_workloads.data.token_store import IntArray, TokenizedDocument, TokenStore
from plinth_workloads.errors import UserError
from plinth_workloads.models.modes import in_evaluation
from plinth_workloads.objectives.objective import MeasuredLoss, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 512
_NUM_MARKS = 3
"""[CLS] A [SEP] B [SEP]: the tokens of a pair that are no text."""


class MaskedLM(Objective):
    """The objective of encoders."""

    pipeline_tag = "fill-mask"
    pipeline_class: str | None = "FillMaskPipeline"

    def __init__(self, run: TrainRun) -> None:
        super().__init__(run)
        self._settings = Settings.model_validate(run.objective_settings)
        self.auto_class = "AutoModelForMaskedLM"
        if self._settings.next_sentence:
            # No pipeline opens a model of two heads.
            self.auto_class, self.pipeline_class = "AutoModelForPreTraining", None

    def recipe(self) -> DataRecipe:
        """Documents with hidden tokens."""
        return _MaskedRecipe(self.run, self._settings)

    def check(self, model: Any, tokenizer: Any) -> None:
        """Refuse a tokenizer without the tokens that hide and part, and a model without the second head."""
        needed = ["mask_token", *(("cls_token", "sep_token") if self._settings.next_sentence else ())]
        missing = [name for name in needed if getattr(tokenizer, name) is None]
        if missing:
            raise UserError(
                "InvalidSpec",
                f"spec.objective.maskedLM: the tokenizer has no {' and no '.join(missing)}; use one that has, or "
                "spec.model.tokenizer.train",
            )
        if self._settings.next_sentence and not hasattr(_try(model), "seq_relationship_logits"):
            raise UserError(
                "InvalidSpec",
                f"spec.objective.maskedLM.nextSentence: {model.config.model_type} has no head for it; set it to false, "
                "or use an architecture like bert",
            )

    def loss(self, model: Any, tokenizer: Any) -> "MaskedLMLoss":
        """Cross entropy of the hidden tokens."""
        if not self.run.training.packing:
            return MaskedLMLoss(model, first_position=None)
        first_position = packed_first_position(model)
        if first_position is None:
            raise UserError(
                "InvalidSpec",
                f"spec.training.packing: {model.config.model_type} computes something else for documents that share a "
                "row; set it to false",
            )
        _check_positions(model, first_position, self.run.training.sequence_length)
        return MaskedLMLoss(model, first_position=first_position)

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity is that of the hidden tokens alone."""
        token_loss = {"loss": means["token_loss"]}
        named = {NEXT_SENTENCE_METRIC: means[NEXT_SENTENCE_METRIC]} if self._settings.next_sentence else {}
        return {**super().metrics(token_loss), "loss": means["loss"], "accuracy": means["accuracy"], **named}


class MaskedLMLoss(MeasuredLoss):
    """An encoder with its losses, summed over the hidden tokens.

    A pair's loss counts as often as its row has hidden tokens, so that the mean over these is BERT's sum of two means.
    """

    def __init__(self, model: Any, first_position: int | None) -> None:
        """Wrap a model.

        Args:
            model: With a head for tokens, and one for pairs where batches have them.
            first_position: Position id of a document's first token where rows are packed; None where they are not, and
                the model numbers tokens by itself.
        """
        super().__init__()
        self.model, self._first_position = model, first_position

    def compute(
        self,
        input_ids_BT: Tensor,
        position_ids_BT: Tensor,
        documents_BT: Tensor,
        labels_BT: Tensor,
        token_type_ids_BT: Tensor | None = None,
        next_labels_B: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses and right answers, summed.

        Args:
            input_ids_BT: Rows with hidden tokens.
            position_ids_BT: Positions from 0 in every document.
            documents_BT: Which document of its row a token belongs to, -1 for padding.
            labels_BT: The hidden tokens, IGNORED elsewhere.
            token_type_ids_BT: 0 in the first text of a pair, 1 in the second; None where there are no pairs.
            next_labels_B: 0 where the second text follows the first, 1 where it does not, IGNORED for padding.
        """
        output = self.model(
            input_ids=input_ids_BT,
            **_placement(documents_BT, position_ids_BT, self._first_position),
            **({} if token_type_ids_BT is None else {"token_type_ids": token_type_ids_BT}),
        )
        logits_BTV = output.logits if next_labels_B is None else output.prediction_logits
        token_loss = F.cross_entropy(
            logits_BTV.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        right = (logits_BTV.detach().argmax(-1) == labels_BT).sum()
        if next_labels_B is None:
            return {"loss": token_loss, "token_loss": token_loss.detach(), "accuracy": right}
        pair_logits = output.seq_relationship_logits.float()
        hidden_B = (labels_BT != IGNORED).sum(1)
        pair_loss_B = F.cross_entropy(pair_logits, next_labels_B, ignore_index=IGNORED, reduction="none")
        pairs_right = ((pair_logits.detach().argmax(-1) == next_labels_B) * hidden_B).sum()
        return {
            "loss": token_loss + (pair_loss_B * hidden_B).sum(),
            "token_loss": token_loss.detach(),
            "accuracy": right,
            NEXT_SENTENCE_METRIC: pairs_right,
        }


def _placement(documents_BT: Tensor, position_ids_BT: Tensor, first_position: int | None) -> dict[str, Tensor]:
    """The arguments that keep documents apart: a block-diagonal mask in packed rows, else the mask of the padding.

    An encoder sees no border in restarting position ids, as causal models of transformers do.
    """
    if first_position is None:
        return {"attention_mask": (documents_BT >= 0).long()}
    together_B1TT = (documents_BT[:, None, :, None] == documents_BT[:, None, None, :]).contiguous()
    return {"attention_mask": together_B1TT, "position_ids": position_ids_BT + first_position}


def packed_first_position(model: Any) -> int | None:
    """The position id of a first token with which documents in one row give what they give alone.

    Args:
        model: An encoder with a head on the CPU; it is left in the mode that it was in.

    Returns:
        0 for most models, the padding's id and one for RoBERTa's kin; None where neither holds, or the model takes no
        position ids.
    """
    padding = getattr(model.config, "pad_token_id", None)
    ids_BT = torch.tensor([[token for token in range(9) if token != padding][1:8]])
    documents_BT, positions_BT = torch.tensor([[0, 0, 0, 1, 1, 1, 1]]), torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    try:
        with in_evaluation(model):
            alone = torch.cat([_token_logits(model(input_ids=part)) for part in (ids_BT[:, :3], ids_BT[:, 3:])], dim=1)
            for first in (0, *(() if padding is None else (padding + 1,))):
                packed = _token_logits(model(input_ids=ids_BT, **_placement(documents_BT, positions_BT, first)))
                if torch.allclose(alone, packed, rtol=1e-4, atol=1e-5):
                    return first
    except (TypeError, ValueError, IndexError, RuntimeError):
        return None
    return None


def _token_logits(output: Any) -> Tensor:
    logits: Tensor = output.logits if hasattr(output, "logits") else output.prediction_logits
    return logits


@torch.no_grad()
def _try(model: Any) -> Any:
    return model(input_ids=torch.ones(1, 2, dtype=torch.long))


def _check_positions(model: Any, first_position: int, sequence_length: int) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and sequence_length + first_position > positions:
        raise UserError(
            "InvalidSpec",
            f"spec.training.sequenceLength: {sequence_length} tokens do not fit the model's {positions} positions, "
            f"which start at {first_position}; lower it to {positions - first_position}",
        )


class _MaskedRecipe(DataRecipe):
    """Documents that start and end with their marks, in packed rows or piece by piece; pairs get theirs in the row."""

    def __init__(self, run: TrainRun, settings: Settings) -> None:
        super().__init__(run)
        self._settings = settings

    def special_tokens(self) -> Mapping[str, str]:
        return {"mask_token": "<|mask|>", "cls_token": "<|cls|>", "sep_token": "<|sep|>"}

    def tokenize(
        self, examples: Iterable[Example], tokenizer: "PreTrainedTokenizerBase"
    ) -> Iterator[TokenizedDocument]:
        pairs = self._settings.next_sentence
        first = [] if pairs or tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
        sep = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
        last = [] if pairs else [sep]
        remaining = iter(examples)
        while chunk := list(islice(remaining, _CHUNK)):
            encoded = tokenizer([example.text or "" for example in chunk], add_special_tokens=False)
            for index, ids in enumerate(encoded["input_ids"]):
                starts = None
                if self._settings.whole_word:
                    words = encoded.word_ids(index)
                    inner = [at == 0 or words[at] != words[at - 1] for at in range(len(ids))]
                    starts = [*([True] * len(first)), *inner, *([True] * len(last))]
                yield TokenizedDocument([*first, *ids, *last], None, starts)

    def learns_something(self, document: TokenizedDocument) -> bool:
        return len(document.ids) > 1

    def plan(self, documents: IntArray, store: TokenStore, *, seed: int) -> EpochPlan:
        length = self.run.training.sequence_length
        if self.cuts_documents:
            return ConcatenatedRows(documents, store.lengths, length, seed=seed)
        pieces = length - _NUM_MARKS if self._settings.next_sentence else length
        return PieceRows(documents, store.lengths, pieces, seed=seed)

    def batcher(self, tokenizer: "PreTrainedTokenizerBase", store: TokenStore, documents: IntArray) -> "_MaskedRows":
        return _MaskedRows(self.run, self._settings, tokenizer, store, documents)


class _MaskedRows:
    """Makes the inputs of `MaskedLMLoss`."""

    def __init__(
        self,
        run: TrainRun,
        settings: Settings,
        tokenizer: "PreTrainedTokenizerBase",
        store: TokenStore,
        documents: IntArray,
    ) -> None:
        self._seed, self._length = run.training.seed, run.training.sequence_length
        self._full_width = run.training.packing or run.training.compile
        self._pairs = settings.next_sentence
        self._tokenizer, self._store, self._documents = tokenizer, store, documents
        if self._pairs and len(documents) < 2:
            raise UserError(
                "InvalidData",
                "spec.objective.maskedLM.nextSentence: there is one document only, and a wrong next sentence is from "
                "another one; give more documents",
            )
        self._masker = Masker(tokenizer, settings.mask_probability)

    def batch(self, rows: Sequence[Sequence[Segment]], draws: Sequence[Draw]) -> Batch:
        """The tensors of some rows, each masked by its own random numbers."""
        made = [
            self._pair(row, draw) if self._pairs else self._row(row, draw)
            for row, draw in zip(rows, draws, strict=True)
        ]
        used = [len(row["input_ids_BT"]) for row in made]
        width = self._length if self._full_width else max([2, *used])
        fill = {"input_ids_BT": self._tokenizer.pad_token_id, "documents_BT": -1, "labels_BT": IGNORED}
        inputs = {}
        for name in made[0]:
            if name.endswith("_BT"):
                inputs[name] = padded([row[name] for row in made], width, fill.get(name, 0))
            else:
                inputs[name] = torch.tensor([int(row[name]) for row in made])
        # A row in which nothing may be looked at has no softmax.
        inputs["documents_BT"][[length == 0 for length in used], 0] = 0
        return Batch(inputs, sum(used), int((inputs["labels_BT"] != IGNORED).sum()))

    def _row(self, row: Sequence[Segment], draw: Draw) -> dict[str, Any]:
        rng = np.random.default_rng([self._seed, *draw])
        lengths = [segment.stop - segment.start for segment in row]
        ids_T, starts_T = self._read(row)
        hidden_T, labels_T = self._masker.hide(ids_T, starts_T, rng) if len(ids_T) else (ids_T, ids_T)
        return {
            "input_ids_BT": hidden_T,
            "position_ids_BT": np.concatenate([np.zeros(0, np.int64), *(np.arange(length) for length in lengths)]),
            "documents_BT": np.repeat(np.arange(len(row)), lengths),
            "labels_BT": labels_T,
        }

    def _pair(self, row: Sequence[Segment], draw: Draw) -> dict[str, Any]:
        """[CLS] A [SEP] B [SEP], where B follows A in its document or, half of the time, is from another one."""
        if not row:
            nothing = np.zeros(0, np.int64)
            names = ("input_ids_BT", "position_ids_BT", "documents_BT", "labels_BT", "token_type_ids_BT")
            return {**dict.fromkeys(names, nothing), "next_labels_B": IGNORED}
        rng = np.random.default_rng([self._seed, *draw])
        (piece,) = row
        middle = int(rng.integers(piece.start + 1, max(piece.stop, piece.start + 2)))
        second, is_random = Segment(piece.document, middle, piece.stop), bool(rng.random() < 0.5)
        if is_random:
            second = self._elsewhere(piece.document, piece.stop - middle, rng)
        cls, sep = ([self._tokenizer.cls_token_id], [True]), ([self._tokenizer.sep_token_id], [True])
        first = self._read([Segment(piece.document, piece.start, middle)])
        parts = [cls, first, sep, self._read([second]), sep]
        ids_T = np.concatenate([ids for ids, _ in parts]).astype(np.int64)
        starts_T = np.concatenate([starts for _, starts in parts])
        hidden_T, labels_T = self._masker.hide(ids_T, starts_T, rng)
        num_first = 2 + middle - piece.start
        return {
            "input_ids_BT": hidden_T,
            "position_ids_BT": np.arange(len(ids_T)),
            "documents_BT": np.zeros(len(ids_T), np.int64),
            "labels_BT": labels_T,
            "token_type_ids_BT": (np.arange(len(ids_T)) >= num_first).astype(np.int64),
            "next_labels_B": int(is_random),
        }

    def _elsewhere(self, document: int, length: int, rng: np.random.Generator) -> Segment:
        """Some tokens of another document."""
        others = self._documents[self._documents != document]
        chosen = int(others[rng.integers(len(others))])
        available = int(self._store.lengths[chosen])
        start = int(rng.integers(max(1, available - length + 1)))
        return Segment(chosen, start, min(start + length, available))

    def _read(self, row: Sequence[Segment]) -> tuple[IntArray, Any]:
        """Ids of a row's tokens, and which of them start a word: all where words are not kept together."""
        spans = [
            slice(
                int(self._store.offsets[segment.document]) + segment.start,
                int(self._store.offsets[segment.document]) + segment.stop,
            )
            for segment in row
        ]
        ids_T = np.concatenate([np.zeros(0, np.int64), *(self._store.tokens[span] for span in spans)]).astype(np.int64)
        if self._store.word_starts is None:
            return ids_T, np.ones(len(ids_T), np.bool_)
        starts = [np.array(self._store.word_starts[span]) for span in spans]
        for part in starts:
            part[:1] = True
        return ids_T, np.concatenate([np.zeros(0, np.bool_), *starts])
