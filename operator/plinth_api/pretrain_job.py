"""PretrainJob: train a model from scratch, or go on from weights, by a self-supervised objective."""

from typing import ClassVar, Literal

from pydantic import Field

from plinth_api.base import ApiModel, FreeForm, ObjectMeta, Rule, SecretRef, ShortText, exactly_one_of
from plinth_api.common import Tokenizer, Uri
from plinth_api.job import MAX_JOB_NAME_LENGTH, JobData, JobSpec, name_rules
from plinth_api.objectives import Objective
from plinth_api.status import JobStatus


class PretrainModel(ApiModel):
    """The model to train: an architecture with random weights, or weights to go on from."""

    rules = (
        exactly_one_of("architecture", "uri"),
        Rule(
            cel="!has(self.uri) || !has(self.config)",
            check=lambda model: model.uri is None or model.config is None,
            message="config goes with architecture; a model from a uri has its own",
        ),
        Rule(
            cel="!has(self.uri) || !has(self.tokenizer) || !has(self.tokenizer.train)",
            check=lambda model: model.uri is None or model.tokenizer is None or model.tokenizer.train is None,
            message="tokenizer.train goes with architecture; weights from a uri fit only their own tokenizer",
        ),
    )

    architecture: ShortText | None = Field(
        default=None, description="architecture is a transformers model type that the objective has a class for: llama."
    )
    config: FreeForm | None = Field(
        default=None, description="config holds arguments of the transformers configuration class."
    )
    tokenizer: Tokenizer | None = Field(default=None, description="tokenizer of a new model.")
    uri: Uri | None = Field(
        default=None, description="uri of weights to go on from: models:/name@alias, hf://org/name@revision."
    )
    secret_ref: SecretRef | None = Field(
        default=None, description="secretRef names the Secret with credentials for the uri."
    )


class PretrainJobSpec(JobSpec):
    """What to train, on what, for how long, where, and what becomes of it."""

    objective: Objective = Field(description="objective that the model learns.")
    model: PretrainModel = Field(description="model to train.")
    data: JobData = Field(description="data to train on.")


class PretrainJob(ApiModel):
    """PretrainJob trains a foundation model on a Ray cluster of its own and registers the result in MLflow."""

    rules: ClassVar[tuple[Rule, ...]] = name_rules(MAX_JOB_NAME_LENGTH)

    api_version: Literal["plinth.dev/v1alpha1"] = Field(description="apiVersion of the resource.")
    kind: Literal["PretrainJob"] = Field(description="kind of the resource.")
    metadata: ObjectMeta = Field(description="metadata of the resource.")
    spec: PretrainJobSpec = Field(description="spec is what the user asks for.")
    status: JobStatus | None = Field(default=None, description="status is what the operator has seen.")
