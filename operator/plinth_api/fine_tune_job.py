"""FineTuneJob: adapt an existing model to a task by a method."""

from typing import ClassVar, Literal

from pydantic import Field

from plinth_api.adaptation import LoRA, Method, Task
from plinth_api.base import ApiModel, ObjectMeta, Rule
from plinth_api.common import ModelRef, Output
from plinth_api.job import MAX_JOB_NAME_LENGTH, FineTuneData, JobSpec, name_rules
from plinth_api.status import JobStatus


class FineTuneOutput(Output):
    """What becomes of the tuned model."""

    merge: bool = Field(
        default=False, description="merge registers a full model with the adapter merged in, not the adapter."
    )


class FineTuneJobSpec(JobSpec):
    """Which model to adapt, to what, on what, and what becomes of it."""

    model: ModelRef = Field(description="model to adapt.")
    task: Task = Field(description="task that the model is taught.")
    method: Method = Field(default=Method(lora=LoRA()), description="method says which weights move.")
    data: FineTuneData = Field(description="data to train on.")
    output: FineTuneOutput = Field(description="output names the registered model.")


class FineTuneJob(ApiModel):
    """FineTuneJob adapts a model on a Ray cluster of its own and registers the result in MLflow."""

    rules: ClassVar[tuple[Rule, ...]] = name_rules(MAX_JOB_NAME_LENGTH)

    api_version: Literal["plinth.dev/v1alpha1"] = Field(description="apiVersion of the resource.")
    kind: Literal["FineTuneJob"] = Field(description="kind of the resource.")
    metadata: ObjectMeta = Field(description="metadata of the resource.")
    spec: FineTuneJobSpec = Field(description="spec is what the user asks for.")
    status: JobStatus | None = Field(default=None, description="status is what the operator has seen.")
