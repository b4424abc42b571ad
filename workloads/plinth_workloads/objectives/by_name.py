"""The objective of a run document."""

from collections.abc import Mapping

from plinth_api.run import TrainRun
from plinth_workloads.objectives.causal_lm import CausalLM
from plinth_workloads.objectives.classification import Classification
from plinth_workloads.objectives.contrastive_text import ContrastiveText
from plinth_workloads.objectives.distillation import Distillation
from plinth_workloads.objectives.embedding import Embedding
from plinth_workloads.objectives.masked_image import MaskedImage
from plinth_workloads.objectives.masked_lm import MaskedLM
from plinth_workloads.objectives.objective import Objective
from plinth_workloads.objectives.preference import Preference
from plinth_workloads.objectives.span_denoising import SpanDenoising
from plinth_workloads.objectives.token_classification import TokenClassification

OBJECTIVES: Mapping[str, type[Objective]] = {
    "causalLM": CausalLM,
    "maskedLM": MaskedLM,
    "spanDenoising": SpanDenoising,
    "contrastiveText": ContrastiveText,
    "maskedImage": MaskedImage,
    "classification": Classification,
    "tokenClassification": TokenClassification,
    "embedding": Embedding,
    "preference": Preference,
    "distillation": Distillation,
}


def objective_of(run: TrainRun) -> Objective:
    """What the run's model is to learn."""
    return OBJECTIVES[run.objective](run)
