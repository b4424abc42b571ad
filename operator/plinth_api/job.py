"""What PretrainJob and FineTuneJob have in common: most of the spec, the status, and what may change when."""

import re
from typing import Annotated, Literal

from pydantic import Field

from plinth_api.base import ApiModel, Rule
from plinth_api.common import (
    Checkpoint,
    Columns,
    Compute,
    DataSource,
    Evaluation,
    Output,
    Prepare,
    Restart,
    Tracking,
    Validation,
    Watchdog,
)
from plinth_api.training import Training

DataFormat = Literal["chat", "promptCompletion", "text", "preference", "labelled"]

MUTABLE_FIELDS = ("suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "restart")
"""Fields of a job's spec that may change at any time; the others only before the first attempt or while suspended."""

MAX_JOB_NAME_LENGTH = 36
"""A RayJob's name is at most 47 characters; the platform appends `-<5 of uid>-<attempt>`."""

JOB_COLUMNS: tuple[dict[str, object], ...] = (
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Reason", "type": "string", "jsonPath": ".status.reason"},
    {"name": "Step", "type": "string", "jsonPath": ".status.progress.steps"},
    {"name": "Progress", "type": "string", "jsonPath": ".status.progress.percentage"},
    {"name": "ETA", "type": "string", "jsonPath": ".status.progress.eta"},
    {"name": "Loss", "type": "number", "jsonPath": ".status.progress.loss"},
    {"name": "Tokens/s", "type": "integer", "jsonPath": ".status.progress.tokensPerSecond"},
    {"name": "GPUs", "type": "integer", "jsonPath": ".status.usage.gpus"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Model", "type": "string", "jsonPath": ".status.model.uri", "priority": 1},
    {"name": "Run", "type": "string", "jsonPath": ".status.tracking.runUrl", "priority": 1},
    {"name": "Message", "type": "string", "jsonPath": ".status.message", "priority": 1},
)


class JobData(ApiModel):
    """The examples that a job trains on and is measured by."""

    train: Annotated[tuple[DataSource, ...], Field(min_length=1, max_length=64)] = Field(
        description="train lists the sources of training examples."
    )
    validation: Validation | None = Field(
        default=None, description="validation examples; none are kept out when left out."
    )
    columns: Columns | None = Field(default=None, description="columns of the data; the usual names when left out.")
    prepare: Prepare | None = Field(default=None, description="prepare cleans documents before they are tokenized.")


class FineTuneData(JobData):
    """The examples of a fine-tuning job."""

    format: DataFormat | None = Field(
        default=None, description="format of the examples; told from the columns when left out."
    )


class JobSpec(ApiModel):
    """The blocks that every job has."""

    training: Training = Field(description="training says how long, how large the batch, which optimizer.")
    compute: Compute = Field(default=Compute(), description="compute is the workers.")
    checkpoint: Checkpoint = Field(
        default=Checkpoint(), description="checkpoint says where and how often state is saved."
    )
    evaluation: Evaluation = Field(
        default=Evaluation(), description="evaluation says when and by what the model is measured."
    )
    output: Output = Field(description="output names the registered model.")
    tracking: Tracking = Field(default=Tracking(), description="tracking says where the run is recorded.")
    restart: Restart = Field(default=Restart(), description="restart bounds how often the job is started again.")
    watchdog: Watchdog = Field(default=Watchdog(), description="watchdog says when a running job is taken for stuck.")
    active_deadline_seconds: int | None = Field(
        default=None, ge=1, le=31536000, description="activeDeadlineSeconds of all attempts together."
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=31536000,
        description="ttlSecondsAfterFinished after which the finished job's objects are deleted.",
    )
    suspend: bool = Field(
        default=False, description="suspend saves the state and frees the workers until it is false again."
    )


_NAME = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""KubeRay makes Services from the name, so it follows DNS-1035."""


def name_rules(max_length: int) -> tuple[Rule, ...]:
    """Rules on the name of an object whose children get longer names."""
    return (
        Rule(
            cel=f"size(self.metadata.name) <= {max_length}",
            check=lambda resource: len(resource.metadata.name) <= max_length,
            message=f"metadata.name must be at most {max_length} characters",
        ),
        Rule(
            cel=f"self.metadata.name.matches('{_NAME}')",
            check=lambda resource: re.fullmatch(_NAME, resource.metadata.name) is not None,
            message="metadata.name must hold lower case letters, digits and '-' only, and start with a letter",
        ),
    )
