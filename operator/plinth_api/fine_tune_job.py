"""FineTuneJob: adapt an existing model to a task by a method."""

from typing import ClassVar, Literal

from pydantic import Field

from plinth_api.adaptation import MERGING_METHODS, VIRTUAL_TOKEN_METHODS, LoRA, Method, Task
from plinth_api.base import ApiModel, ObjectMeta, Rule
from plinth_api.common import ModelRef, Output
from plinth_api.job import MAX_JOB_NAME_LENGTH, FineTuneData, JobSpec, name_rules
from plinth_api.status import JobStatus


class FineTuneOutput(Output):
    """What becomes of the tuned model."""

    merge: bool = Field(
        default=False, description="merge registers a full model with the adapter merged in, not the adapter."
    )


def _is_any_of(methods: tuple[str, ...]) -> str:
    return "(" + " || ".join(f"has(self.method.{name})" for name in methods) + ")"


class FineTuneJobSpec(JobSpec):
    """Which model to adapt, to what, on what, and what becomes of it."""

    rules = (
        Rule(
            cel=f"!self.output.merge || {_is_any_of(MERGING_METHODS)}",
            check=lambda spec: not spec.output.merge or spec.method.merges,
            message=f"output.merge goes with method {', '.join(MERGING_METHODS[:-1])} or {MERGING_METHODS[-1]} only: "
            "the others leave nothing that could be added to the model's weights",
        ),
        Rule(
            cel=f"!has(self.training.packing) || !self.training.packing || !{_is_any_of(VIRTUAL_TOKEN_METHODS)}",
            check=lambda spec: not spec.training.packing or not spec.method.num_virtual_tokens,
            message=f"training.packing cannot be true with method {', '.join(VIRTUAL_TOKEN_METHODS[:-1])} or "
            f"{VIRTUAL_TOKEN_METHODS[-1]}: virtual tokens stand before a row, and only its first document would "
            "see them; leave packing out",
        ),
    )

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
