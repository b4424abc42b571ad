"""The training block: how long, how large the batch, which optimizer and schedule."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from plinth_api.base import ApiModel, exactly_one_of

_MOST_ROWS = 1048576


def _one_micro_batch_error(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        raise PydanticCustomError(
            "rule", "{message}", {"message": f"must be auto or a whole number from 1 to {_MOST_ROWS}"}
        ) from None


MicroBatchSize = Annotated[
    Annotated[int, Field(ge=1, le=_MOST_ROWS)] | Annotated[str, StringConstraints(max_length=4, pattern="^auto$")],
    WrapValidator(_one_micro_batch_error),
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]
"""Rows of a pass, or auto."""


class Schedule(ApiModel):
    """The learning rate over time."""

    name: Literal["cosine", "linear", "constant", "wsd"] = Field(
        default="cosine", description="name of the schedule; wsd is warm-up, stable, decay."
    )
    warmup_steps: int = Field(default=0, ge=0, le=10000000, description="warmupSteps of linear warm-up from zero.")
    decay_steps: int | None = Field(
        default=None, ge=1, le=10000000, description="decaySteps at the end of wsd; a fifth of the run when left out."
    )
    final_learning_rate_fraction: float = Field(
        default=0.1, ge=0, le=1, description="finalLearningRateFraction of learningRate at the last step."
    )


class Optimizer(ApiModel):
    """What turns gradients into updates."""

    name: Literal["adamw", "adamw8bit", "muon"] = Field(
        default="adamw",
        description="name of the optimizer; adamw8bit is adamw whose states take a quarter of the memory, muon updates "
        "matrices and leaves the rest to adamw.",
    )
    weight_decay: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="weightDecay of matrices; 0.1 in pretraining, 0 in fine-tuning when left out.",
    )
    beta1: float = Field(default=0.9, ge=0, le=0.9999, description="beta1 of Adam.")
    beta2: float = Field(default=0.95, ge=0, le=0.99999, description="beta2 of Adam.")
    epsilon: float = Field(default=1e-8, ge=1e-16, le=0.1, description="epsilon of Adam.")


class Training(ApiModel):
    """How the model is trained."""

    rules = (exactly_one_of("steps", "epochs", "tokens"),)

    steps: int | None = Field(default=None, ge=1, le=100000000, description="steps of the optimizer.")
    epochs: float | None = Field(default=None, ge=0.001, le=100000, description="epochs over the training data.")
    tokens: int | None = Field(
        default=None, ge=1, le=10**15, description="tokens to train on, rounded up to whole steps."
    )
    sequence_length: int = Field(
        default=1024, ge=8, le=10485760, description="sequenceLength in tokens of one row of the batch."
    )
    global_batch_size: int = Field(
        default=32,
        ge=1,
        le=1048576,
        description="globalBatchSize is the number of rows in one optimizer step, over all workers.",
    )
    micro_batch_size: MicroBatchSize | None = Field(
        default=None,
        description="microBatchSize is the rows in one pass of one worker. auto finds the fastest that fits by trying "
        "on the job's own machines before the first step, and remembers it for the next attempt; when left out, rows "
        "of 16384 tokens. It changes speed and memory, not what is learned.",
    )
    learning_rate: float = Field(default=3e-4, ge=1e-10, le=10, description="learningRate at its peak.")
    schedule: Schedule = Field(default=Schedule(), description="schedule of the learning rate.")
    optimizer: Optimizer = Field(default=Optimizer(), description="optimizer and its settings.")
    max_grad_norm: float = Field(
        default=1.0, ge=0, le=1000000, description="maxGradNorm clips the gradient's norm; 0 does not clip."
    )
    precision: Literal["auto", "bf16", "fp32", "fp8"] = Field(
        default="auto", description="precision of the computation; auto is bf16 on GPUs and fp32 on CPUs."
    )
    packing: bool | None = Field(
        default=None,
        description="packing fills rows with several documents; attention stays inside each document. When left out it "
        "is on, but for methods prefix, prompt and promptEncoder, which put virtual tokens before a row.",
    )
    compile: bool | None = Field(default=None, description="compile with torch.compile; on GPUs only when left out.")
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        default="none",
        description="activationCheckpointing trades computation for memory: none keeps all activations, selective what "
        "matrix products and attention return, full the input of each block alone; the rest is computed again.",
    )
    seed: int = Field(default=42, ge=0, le=4294967295, description="seed of every random number.")
