"""Prefer the chosen answer to the rejected one: DPO against the model that training starts from, and ORPO.

Shapes: B comparisons, R = 2 B rows, the chosen answers before the rejected ones, T tokens.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plinth_api.adaptation import Preference as Settings
from plinth_api.run import RunSource, TrainRun
from plinth_workloads.data.comparisons import border_of, read_comparisons, tokenize_comparisons
from plinth_workloads.data.loader import IGNORED, Batch, Draw, Rows
from plinth_workloads.data.packing import EpochPlan, Segment, WholeDocumentRows
from plinth_workloads.data.recipe import DataRecipe
from plinth_workloads.data.reference import FloatArray, read_reference, reference_path
from plinth_workloads.data.sources import load_source
from plinth_workloads.data.token_store import IntArray, TokenizedDocument, TokenStore
from plinth_workloads.errors import UserError
from plinth_workloads.models.catalog import CAUSAL_LM
from plinth_workloads.objectives.chunked_loss import logit_transform
from plinth_workloads.objectives.objective import MeasuredLoss, Objective
from plinth_workloads.objectives.token_states import row_log_probs, token_states

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Preference(Objective):
    """The objective of the task `preference`."""

    auto_class = CAUSAL_LM
    pipeline_tag = "text-generation"
    pipeline_class = "TextGenerationPipeline"

    def __init__(self, run: TrainRun) -> None:
        super().__init__(run)
        self._settings = Settings.model_validate(run.objective_settings)

    def recipe(self) -> DataRecipe:
        """Comparisons of two answers."""
        return _ComparisonRecipe(self.run)

    def loss(self, model: Any, tokenizer: Any) -> "PreferenceLoss":
        """The loss that the task names."""
        if self._settings.dpo is not None:
            return DPOLoss(model, self._settings.dpo.beta)
        assert self._settings.orpo is not None
        return ORPOLoss(model, self._settings.orpo.beta)

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Loss; accuracy, how often the chosen answer has the greater reward; margin, by how much in the mean."""
        return dict(means)


class PreferenceLoss(MeasuredLoss):
    """A causal language model with a loss over comparisons, summed over this process's."""

    def __init__(self, model: Any, beta: float) -> None:
        super().__init__()
        self.model, self._beta = model, beta
        self._transform = logit_transform(model)

    def log_probs(self, input_ids_RT: Tensor, position_ids_RT: Tensor, labels_RT: Tensor) -> Tensor:
        """Log probability of each row's answer, [R]."""
        states = token_states(self.model, self._transform, input_ids_RT, position_ids_RT)
        return row_log_probs(states, labels_RT)

    losses_and_rewards: Callable[..., tuple[Tensor, Tensor]]
    """Of log probabilities [R], and of what each loss names: the loss of comparisons [B], the reward of answers [R]."""

    def compute(
        self, input_ids_RT: Tensor, position_ids_RT: Tensor, labels_RT: Tensor, is_pair_B: Tensor, **others: Tensor
    ) -> dict[str, Tensor]:
        """Loss, right orders and margins of rewards, summed.

        Args:
            input_ids_RT: Prompts with their chosen answers, then the same with the rejected ones.
            position_ids_RT: Positions; padding is a document of its own.
            labels_RT: The following token inside an answer, IGNORED elsewhere.
            is_pair_B: False for padding.
            others: What else the loss needs: `reference_R`.
        """
        log_probs_R = self.log_probs(input_ids_RT, position_ids_RT, labels_RT)
        lengths_R = (labels_RT != IGNORED).sum(1).clamp(min=1)
        losses_B, rewards_R = self.losses_and_rewards(log_probs_R, lengths_R=lengths_R, **others)
        chosen_B, rejected_B = rewards_R.detach().chunk(2)
        margins_B = (chosen_B - rejected_B) * is_pair_B
        # A row of padding has no answer, and a loss of its own all the same.
        loss = losses_B.where(is_pair_B, torch.zeros_like(losses_B)).sum()
        return {"loss": loss, "accuracy": (margins_B > 0).float().sum(), "margin": margins_B.sum()}


class DPOLoss(PreferenceLoss):
    """Direct preference optimisation (https://arxiv.org/abs/2305.18290, equation 7).

    The reference model is the one that training starts from. What it says of each answer comes with the batch.
    """

    def losses_and_rewards(self, log_probs_R: Tensor, lengths_R: Tensor, reference_R: Tensor) -> tuple[Tensor, Tensor]:
        """Of log probabilities, and of those that the reference model gives the same answers."""
        rewards_R = self._beta * (log_probs_R - reference_R)
        chosen_B, rejected_B = rewards_R.chunk(2)
        return -F.logsigmoid(chosen_B - rejected_B), rewards_R


class ORPOLoss(PreferenceLoss):
    """Odds-ratio preference optimisation (https://arxiv.org/abs/2403.07691, equations 4 to 7); it has no reference.

    The likelihood of an answer is the geometric mean over its tokens, so that length does not count.
    """

    def losses_and_rewards(self, log_probs_R: Tensor, lengths_R: Tensor) -> tuple[Tensor, Tensor]:
        """Of log probabilities, and of how many tokens each answer has."""
        mean_R = log_probs_R / lengths_R
        # The likelihood of a mean of 0 would be certain, and its odds infinite.
        log_odds_R = mean_R - torch.log(-torch.expm1(mean_R.clamp(max=-1e-6)))
        chosen_B, rejected_B = log_odds_R.chunk(2)
        losses_B = -mean_R.chunk(2)[0] - self._beta * F.logsigmoid(chosen_B - rejected_B)
        return losses_B, self._beta * mean_R


class _ComparisonRecipe(DataRecipe):
    """Every comparison is a row: two sequences, each of at most `sequenceLength` tokens, and never cut."""

    def documents(self, source: RunSource, tokenizer: Any, cache: Path) -> Iterator[TokenizedDocument]:
        rows = load_source(source, cache / "datasets")
        limit = self.run.training.sequence_length
        lengths: list[int] = []
        for document in tokenize_comparisons(read_comparisons(rows, source, self.run.data), tokenizer):
            longer = _longer_half(document)
            lengths.append(longer)
            if longer <= limit:
                yield document
        long = [length for length in lengths if length > limit]
        if long and len(long) == len(lengths):
            raise UserError(
                "InvalidData",
                f"{source.uri}: no row fits: prompt and longer answer have {min(long)} to {max(long)} tokens, "
                f"spec.training.sequenceLength is {limit}; raise it",
            )
        if long:
            logger.warning(
                "%s: %d of %d rows left out: prompt and longer answer have up to %d tokens, "
                "spec.training.sequenceLength is %d",
                *(source.uri, len(long), len(lengths), max(long), limit),
            )

    def learns_something(self, document: TokenizedDocument) -> bool:
        return True

    def plan(self, documents: IntArray, store: TokenStore, *, seed: int) -> EpochPlan:
        longest = 2 * self.run.training.sequence_length
        return WholeDocumentRows(documents, store.lengths, longest, packing=False, seed=seed)

    def batcher(self, tokenizer: "PreTrainedTokenizerBase", store: TokenStore, documents: IntArray) -> "ComparisonRows":
        rows = Rows(store, self.run.training.sequence_length, tokenizer.pad_token_id, pad_to_longest=True)
        return ComparisonRows(rows, read_reference(reference_path(self.run, store)))


class ComparisonRows:
    """Makes the inputs of a `PreferenceLoss`; `reference_R` among them where it is known."""

    def __init__(self, rows: Rows, reference_N2: FloatArray | None) -> None:
        self._rows, self._reference_N2 = rows, reference_N2

    def batch(self, rows: Sequence[Sequence[Segment]], draws: Sequence[Draw] = ()) -> Batch:
        """The tensors of some comparisons; nothing in them is random."""
        halves = [self._halves(row) for row in rows]
        batch = self._rows.batch([half[side] for side in (0, 1) for half in halves])
        inputs = {name.replace("_BT", "_RT"): tensor for name, tensor in batch.inputs.items()}
        inputs["is_pair_B"] = torch.tensor([len(row) > 0 for row in rows])
        if self._reference_N2 is not None:
            known = [
                [float(self._reference_N2[row[0].document, side]) if row else 0.0 for row in rows] for side in (0, 1)
            ]
            inputs["reference_R"] = torch.tensor(known).flatten()
        return Batch(inputs, batch.num_tokens, int(inputs["is_pair_B"].sum()))

    def _halves(self, row: Sequence[Segment]) -> tuple[Sequence[Segment], Sequence[Segment]]:
        """The segments of the chosen and of the rejected answer, each behind the prompt."""
        if not row:
            return (), ()
        store, (document, start, stop) = self._rows.store, row[0]
        assert store.targets is not None
        offset = int(store.offsets[document])
        border = border_of(store.targets[offset + start : offset + stop])
        return (Segment(document, start, border),), (Segment(document, border, stop),)


def _longer_half(document: TokenizedDocument) -> int:
    assert document.targets is not None
    border = border_of(np.array(document.targets))
    return max(border, len(document.ids) - border)
