"""Match the distribution of a teacher, beside learning from the data.

Shapes: B rows, T tokens, N positions with a label, V vocabulary; X and Y widths of the student's and the teacher's
states.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plinth_api.adaptation import Distillation as Settings
from plinth_api.run import TrainRun
from plinth_workloads.data.loader import IGNORED
from plinth_workloads.data.recipe import DataRecipe
from plinth_workloads.errors import UserError
from plinth_workloads.models.attention import attend_within_documents
from plinth_workloads.models.catalog import check_positions
from plinth_workloads.models.fetch import fetch_model
from plinth_workloads.models.load import load_model
from plinth_workloads.models.tokenizers import load_tokenizer
from plinth_workloads.models.virtual_tokens import num_virtual_tokens
from plinth_workloads.objectives.causal_lm import CausalLM, documents_stay_apart
from plinth_workloads.objectives.chunked_loss import logit_transform
from plinth_workloads.objectives.objective import MeasuredLoss
from plinth_workloads.objectives.token_states import (
    TokenStates,
    chunk_size,
    each_chunk,
    labelled_positions,
    token_states,
)

_TEACHER = "spec.task.distillation.teacher.uri"


class Distillation(CausalLM):
    """The objective of the task `distillation` (https://arxiv.org/abs/1503.02531)."""

    def __init__(self, run: TrainRun) -> None:
        super().__init__(run)
        self._settings = Settings.model_validate(run.objective_settings)

    def recipe(self) -> DataRecipe:
        """Texts, chats or pairs, in the tokens that student and teacher share."""
        return _SharedTokens(self.run, self._settings.teacher.uri)

    def loss(self, model: Any, tokenizer: Any) -> "DistillationLoss":  # type: ignore[override]
        """The divergence from the teacher, who is loaded here, and cross entropy."""
        teacher = load_teacher(self.run, self._settings.teacher.uri)
        return DistillationLoss(
            model,
            teacher,
            temperature=self._settings.temperature,
            alpha=self._settings.alpha,
            num_tokens=len(tokenizer),
        )

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Loss; perplexity on the data; kl, the divergence from the teacher at the temperature."""
        perplexity = math.exp(min(means["crossEntropy"], 700.0))
        return {"loss": means["loss"], "perplexity": perplexity, "kl": means["kl"]}


class DistillationLoss(MeasuredLoss):
    """A student with its loss: alpha T^2 KL(teacher || student) + (1 - alpha) cross entropy, summed over labels.

    Both distributions are softened by the temperature T, and T^2 keeps the size of the gradient (section 2.1 of
    https://arxiv.org/abs/1503.02531). The teacher never trains: it has no dropout and no gradient.
    """

    def __init__(self, model: Any, teacher: nn.Module, *, temperature: float, alpha: float, num_tokens: int) -> None:
        """Put student and teacher side by side.

        Args:
            model: The student.
            teacher: A causal language model with the same tokenizer.
            temperature: T.
            alpha: The weight of the teacher beside the data.
            num_tokens: Of the tokenizer; what logits there are beyond it is padding.
        """
        super().__init__()
        self.model, self.teacher = model, teacher.requires_grad_(False).eval()
        self._temperature, self._alpha, self._num_tokens = temperature, alpha, num_tokens
        self._transform, self._teacher_transform = logit_transform(model), logit_transform(teacher)

    def train(self, mode: bool = True) -> "DistillationLoss":
        """Switch the student; the teacher is always asked as it was when it had finished."""
        super().train(mode)
        self.teacher.eval()
        return self

    def compute(self, input_ids_BT: Tensor, position_ids_BT: Tensor, labels_BT: Tensor) -> dict[str, Tensor]:
        """Loss, cross entropy and divergence, summed over the labels that are not IGNORED.

        Args:
            input_ids_BT: Token ids.
            position_ids_BT: Positions in each document; where they restart, attention stops.
            labels_BT: The token that follows, or IGNORED.
        """
        with torch.no_grad():
            teacher = token_states(self.teacher, self._teacher_transform, input_ids_BT, position_ids_BT)
        student = token_states(self.model, self._transform, input_ids_BT, position_ids_BT)
        labels_N = labels_BT.flatten()
        places = labelled_positions(labels_N)

        def losses(student_NX: Tensor, teacher_NY: Tensor, labels_N: Tensor) -> Tensor:
            return self._losses(student, student_NX, teacher, teacher_NY, labels_N)

        size = chunk_size(student.num_logits + teacher.num_logits, labels_N.device)
        rows = (student.values_NX[places], teacher.values_NX[places], labels_N[places])
        cross_entropy, divergence = each_chunk(losses, size, *rows).sum(0)
        loss = self._alpha * self._temperature**2 * divergence + (1 - self._alpha) * cross_entropy
        return {"loss": loss, "crossEntropy": cross_entropy.detach(), "kl": divergence.detach()}

    def _losses(
        self, student: TokenStates, student_NX: Tensor, teacher: TokenStates, teacher_NY: Tensor, labels_N: Tensor
    ) -> Tensor:
        """Cross entropy and divergence of each position, [N, 2]; nothing where the label is IGNORED."""
        logits_NV = student.to_logits(student_NX)
        with torch.no_grad():
            softened_NV = teacher.to_logits(teacher_NY)[:, : self._num_tokens] / self._temperature
            target_NV = softened_NV.log_softmax(-1)
        found_NV = (logits_NV[:, : self._num_tokens] / self._temperature).log_softmax(-1)
        divergence_N = F.kl_div(found_NV, target_NV, reduction="none", log_target=True).sum(-1)
        cross_entropy_N = F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORED, reduction="none")
        return torch.stack([cross_entropy_N, divergence_N * (labels_N != IGNORED)], dim=1)


class _SharedTokens(DataRecipe):
    """The rows of a causal language model, once it is sure that the teacher reads the same tokens."""

    def __init__(self, run: TrainRun, teacher_uri: str) -> None:
        super().__init__(run)
        self._teacher_uri = teacher_uri

    def processor(self, base_folder: Path | None, cache: Path) -> Any:
        """The student's tokenizer.

        Raises:
            UserError: ModelNotFound for a teacher that is not there, InvalidSpec for one with another tokenizer.
        """
        tokenizer = super().processor(base_folder, cache)
        uri = self._teacher_uri
        other = load_tokenizer(_teacher_folder(self.run, uri), uri)
        ours, theirs = tokenizer.get_vocab(), other.get_vocab()
        if ours != theirs:
            shared = sum(theirs.get(token) == number for token, number in ours.items())
            raise UserError(
                "InvalidSpec",
                f"{_TEACHER}: {uri} has another tokenizer: of the {len(ours)} tokens of {self.run.model.uri} it has "
                f"{shared} under the same number, and {len(theirs)} in all; use a teacher with the model's tokenizer",
            )
        return tokenizer


def load_teacher(run: TrainRun, uri: str) -> Any:
    """The teacher of a run, in fp32 on the CPU.

    Raises:
        UserError: ModelNotFound or ModelLoadFailed; InvalidSpec where it cannot read the run's rows.
    """
    cache = Path(run.work_dir) / "cache"
    folder = _teacher_folder(run, uri)
    teacher: Any = load_model(folder, uri, tracking_uri=run.tracking.uri, cache_dir=cache)
    try:
        check_positions(teacher.config, run.training.sequence_length)
    except UserError as error:
        raise UserError(error.reason, f"{_TEACHER}: {uri}: {error.message}") from error
    if run.training.packing and (num_virtual_tokens(teacher) or not documents_stay_apart(teacher)):
        raise UserError(
            "InvalidSpec",
            f"spec.training.packing: the teacher {uri} does not keep the documents of one row apart; set it to false",
        )
    attend_within_documents(teacher, on_gpu=bool(run.workers.gpus), precision=run.training.precision)
    return teacher


def _teacher_folder(run: TrainRun, uri: str) -> Path:
    try:
        return fetch_model(uri, tracking_uri=run.tracking.uri, cache_dir=Path(run.work_dir) / "cache")
    except UserError as error:
        raise UserError(error.reason, f"{_TEACHER}: {error.message}") from error
