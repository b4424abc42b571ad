"""What each objective means for the rest of a job: which metrics, columns and rows it has, and what it refuses."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plinth_api.base import wire_name
from plinth_api.common import DataSource, ModelRef
from plinth_api.errors import Problem
from plinth_api.fine_tune_job import FineTuneJob
from plinth_api.job import DataFormat
from plinth_api.parse import Job
from plinth_api.pretrain_job import PretrainJob


@dataclass(frozen=True, slots=True)
class ObjectiveFacts:
    """What follows from an objective.

    Attributes:
        metrics: What evaluation can compute; the first ones are computed when the job names none.
        num_default_metrics: How many of them those are.
        data_format: What an example is; None for an image.
        columns: The fields of spec.data.columns that its examples have.
        packs: Whether several documents can share a row.
        compares_rows: Whether a row's loss depends on the other rows of the step, so that a pass must hold them all.
        reads_images: Whether examples are images, which have no tokens.
        sequences_per_row: How many sequences of sequenceLength tokens a row has at most.
        takes_virtual_tokens: Whether the model generates text, before which virtual tokens can stand.
    """

    metrics: tuple[str, ...] = ("loss", "perplexity")
    num_default_metrics: int = 2
    data_format: DataFormat | None = "text"
    columns: frozenset[str] = frozenset({"text"})
    packs: bool = True
    compares_rows: bool = False
    reads_images: bool = False
    sequences_per_row: int = 1
    takes_virtual_tokens: bool = True


FACTS: Mapping[str, ObjectiveFacts] = {
    "causalLM": ObjectiveFacts(),
    "maskedLM": ObjectiveFacts(metrics=("loss", "perplexity", "accuracy")),
    "spanDenoising": ObjectiveFacts(metrics=("loss", "perplexity", "accuracy"), packs=False),
    "contrastiveText": ObjectiveFacts(
        metrics=("loss", "accuracy"),
        data_format="promptCompletion",
        columns=frozenset({"prompt", "completion"}),
        packs=False,
        compares_rows=True,
    ),
    "maskedImage": ObjectiveFacts(
        metrics=("loss",), data_format=None, columns=frozenset({"image"}), packs=False, reads_images=True
    ),
    "classification": ObjectiveFacts(
        metrics=("loss", "accuracy", "macroF1"),
        num_default_metrics=3,
        data_format="labelled",
        columns=frozenset({"text", "prompt", "completion", "label"}),
        packs=False,
        takes_virtual_tokens=False,
    ),
    "tokenClassification": ObjectiveFacts(
        metrics=("loss", "accuracy", "macroF1", "entityF1"),
        num_default_metrics=3,
        data_format="labelled",
        columns=frozenset({"text", "label"}),
        packs=False,
        takes_virtual_tokens=False,
    ),
    "embedding": ObjectiveFacts(
        metrics=("loss", "accuracy", "mrr"),
        num_default_metrics=3,
        data_format="promptCompletion",
        columns=frozenset({"prompt", "completion", "rejected"}),
        packs=False,
        compares_rows=True,
        takes_virtual_tokens=False,
    ),
    "preference": ObjectiveFacts(
        metrics=("loss", "accuracy", "margin"),
        num_default_metrics=3,
        data_format="preference",
        columns=frozenset({"prompt", "chosen", "rejected"}),
        packs=False,
        sequences_per_row=2,
    ),
    "distillation": ObjectiveFacts(
        metrics=("loss", "perplexity", "kl"),
        num_default_metrics=3,
        columns=frozenset({"text", "messages", "prompt", "completion"}),
    ),
}
"""The objectives that are supported, by their key, and the tasks of fine-tuning that have an objective of their own."""

NEXT_SENTENCE_METRIC = "nextSentenceAccuracy"


def objective_of(job: Job) -> tuple[str, dict[str, Any]]:
    """Key and settings of what a job trains for; a task that trains no objective of its own trains causalLM."""
    chosen = job.spec.objective if isinstance(job, PretrainJob) else job.spec.task
    field, settings = next((name, value) for name, value in chosen if value is not None)
    name = wire_name(type(chosen), field)
    return (name, settings.to_wire()) if isinstance(job, PretrainJob) or name in FACTS else ("causalLM", {})


def facts_of(job: Job) -> ObjectiveFacts:
    """What follows from the objective of a job; one that is not supported yet counts as causalLM."""
    return FACTS.get(objective_of(job)[0], FACTS["causalLM"])


def teacher_of(job: Job) -> ModelRef | None:
    """The model that a job learns from; None where it learns from data alone."""
    distillation = job.spec.task.distillation if isinstance(job, FineTuneJob) else None
    return distillation.teacher if distillation else None


def packs_rows(job: Job) -> bool:
    """Whether rows hold several documents: where the objective can do that, and the job does not say otherwise."""
    pairs = objective_of(job)[1].get("nextSentence", False)
    wanted = job.spec.training.packing
    if wanted is None:
        # Virtual tokens stand before a row, and only its first document would see them.
        wanted = not (isinstance(job, FineTuneJob) and job.spec.method.num_virtual_tokens)
    return wanted and facts_of(job).packs and not pairs


def known_metrics(job: Job) -> tuple[str, ...]:
    """What evaluation can compute."""
    pairs = objective_of(job)[1].get("nextSentence", False)
    return (*facts_of(job).metrics, *((NEXT_SENTENCE_METRIC,) if pairs else ()))


def metrics_of(job: Job) -> tuple[str, ...]:
    """What evaluation computes: what the job names, or the objective's usual metrics."""
    facts = facts_of(job)
    return job.spec.evaluation.metrics or facts.metrics[: facts.num_default_metrics]


def objective_problems(job: PretrainJob) -> Iterator[Problem]:
    """What contradicts the objective."""
    name, facts = objective_of(job)[0], facts_of(job)
    for column in job.spec.data.columns.to_wire() if job.spec.data.columns else ():
        if column not in facts.columns:
            usual = " and ".join(sorted(facts.columns))
            yield Problem(f"spec.data.columns.{column}", f"objective {name} reads {usual}; leave {column} out")
    for path, source in _sources(job):
        if source.format == "imageFolder" and not facts.reads_images:
            yield Problem(f"{path}.format", f"imageFolder goes with objective maskedImage, not with {name}")
    if facts.reads_images:
        yield from _image_problems(job, name)
    elif job.spec.model.architecture and job.spec.model.tokenizer is None:
        yield Problem(
            "spec.model.tokenizer", "is required for a new language model: {train: {vocabSize: 4096}} or {uri: ...}"
        )
    yield from row_problems(job, f"objective {name}")


def _sources(job: PretrainJob) -> Iterator[tuple[str, DataSource]]:
    validation = job.spec.data.validation
    held_out = (validation.sources if validation else None) or ()
    for path, sources in (("spec.data.train", job.spec.data.train), ("spec.data.validation.sources", held_out)):
        for index, source in enumerate(sources):
            yield f"{path}[{index}]", source


def _image_problems(job: PretrainJob, name: str) -> Iterator[Problem]:
    if job.spec.model.tokenizer is not None:
        yield Problem("spec.model.tokenizer", f"objective {name} reads images, which have none; leave it out")
    if job.spec.training.tokens is not None:
        yield Problem("spec.training.tokens", f"objective {name} reads images; give steps or epochs")


def row_problems(job: Job, what: str) -> Iterator[Problem]:
    """What contradicts the rows of a job, whose objective or task is `what` in words."""
    facts, training = facts_of(job), job.spec.training
    if training.packing and not packs_rows(job):
        reader = what if not facts.packs else f"nextSentence of {what}"
        yield Problem(
            "spec.training.packing", f"{reader} has rows of its own, which hold no other example; leave it out"
        )
    if not facts.compares_rows:
        return
    if training.global_batch_size < 2:
        yield Problem(
            "spec.training.globalBatchSize",
            f"{what} tells a pair from the other pairs of the step; use at least 2",
        )
    rows = training.global_batch_size // job.spec.compute.data_size()
    if training.micro_batch_size not in (None, rows):
        yield Problem(
            "spec.training.microBatchSize",
            f"{what} compares all rows of a step, so a pass holds the {rows} rows of a worker; leave it out",
        )
