"""The status of the three kinds, as `kubectl get -o yaml` shows it; written by the operator only."""

import math
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from plinth_api.base import Condition, LongText, ShortText, StatusModel

JobPhase = Literal["Pending", "Queued", "Starting", "Training", "Evaluating", "Succeeded", "Failed", "Suspended"]
ServicePhase = Literal["Pending", "Starting", "Ready", "Updating", "Degraded", "Failed"]
RolloutPhase = Literal["Progressing", "Promoted", "RolledBack"]


def _finite(number: float | None) -> float | None:
    """JSON has no word for NaN, and the API server takes none: a loss that is not a number is shown as no loss."""
    return number if number is not None and math.isfinite(number) else None


def _finite_values(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


FiniteOrNone = Annotated[float | None, AfterValidator(_finite)]
Metrics = Annotated[dict[str, float], Field(max_length=64), AfterValidator(_finite_values)]
Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]
Text = Annotated[str, Field(max_length=1024)]


class Progress(StatusModel):
    """How far the training is: strings for the columns, numbers for programs."""

    steps: Text | None = Field(default=None, description="steps done of all, for people: 840/2000.")
    percentage: Text | None = Field(default=None, description="percentage done, for people: 42%.")
    eta: Text | None = Field(default=None, description="eta is the time left, for people: 17m.")
    step: int | None = Field(default=None, ge=0, description="step of the optimizer.")
    total_steps: int | None = Field(default=None, ge=0, description="totalSteps of the run.")
    percent: int | None = Field(default=None, ge=0, le=100, description="percent done.")
    eta_seconds: int | None = Field(default=None, ge=0, description="etaSeconds is the time left.")
    loss: FiniteOrNone = Field(default=None, description="loss of the last logged step.")
    learning_rate: FiniteOrNone = Field(default=None, description="learningRate of the last logged step.")
    tokens_per_second: int | None = Field(default=None, ge=0, description="tokensPerSecond over all workers.")
    tokens: int | None = Field(default=None, ge=0, description="tokens trained on so far.")
    updated_at: datetime | None = Field(default=None, description="updatedAt is when these numbers were read.")


class CheckpointStatus(StatusModel):
    """The newest complete checkpoint."""

    step: int = Field(ge=0, description="step that was saved.")
    uri: Text = Field(description="uri of the checkpoint.")
    time: datetime | None = Field(default=None, description="time of the save.")


class Attempt(StatusModel):
    """One start of the job."""

    number: int = Field(ge=1, description="number of the attempt, from 1.")
    ray_job: Text | None = Field(default=None, description="rayJob is the name of the RayJob.")
    started_at: datetime | None = Field(default=None, description="startedAt of the attempt.")
    finished_at: datetime | None = Field(default=None, description="finishedAt of the attempt.")
    outcome: ShortText | None = Field(
        default=None, description="outcome: Succeeded, Preempted, Suspended or the reason it failed."
    )
    from_step: int | None = Field(default=None, ge=0, description="fromStep is the checkpoint that it started from.")
    last_step: int | None = Field(default=None, ge=0, description="lastStep that it reached.")
    lost_steps: int | None = Field(default=None, ge=0, description="lostSteps were done again by the next attempt.")


class EvaluationStatus(StatusModel):
    """What the evaluation found."""

    metrics: Metrics = Field(default={}, description="metrics of the final model.")
    gate: Literal["Passed", "Failed", "NotConfigured"] | None = Field(default=None, description="gate is its verdict.")


class ModelStatus(StatusModel):
    """The registered model version."""

    name: Text = Field(description="name of the registered model.")
    version: Text = Field(description="version in the registry.")
    uri: Text = Field(description="uri of the version: models:/name/3.")
    prompt_hash: Text | None = Field(
        default=None, description="promptHash changes with spec.prompt, which is a part of what a service answers."
    )


class AdapterStatus(StatusModel):
    """An adapter that answers."""

    name: Text = Field(description="name by which requests ask for it.")
    uri: Text = Field(description="uri of the version in use: models:/name/3.")


class TrackingStatus(StatusModel):
    """Where the run is recorded."""

    experiment_id: Text | None = Field(default=None, description="experimentId in MLflow.")
    run_id: Text | None = Field(default=None, description="runId in MLflow.")
    run_url: Text | None = Field(default=None, description="runUrl of the MLflow page.")


class Usage(StatusModel):
    """What the job has used."""

    gpus: int | None = Field(default=None, ge=0, description="gpus that the job asks for.")
    gpu_seconds: int | None = Field(default=None, ge=0, description="gpuSeconds held by all attempts.")
    wasted_gpu_seconds: int | None = Field(
        default=None, ge=0, description="wastedGpuSeconds spent on steps that were lost."
    )


class CommonStatus(StatusModel):
    """What every kind's status has."""

    observed_generation: int | None = Field(
        default=None, ge=0, description="observedGeneration of the spec that this speaks of."
    )
    reason: Text | None = Field(
        default=None, description="reason for the phase; docs/troubleshooting.md has an entry for each."
    )
    message: LongText | None = Field(default=None, description="message says what, where, and what to do about it.")
    conditions: Conditions = Field(default=(), description="conditions of the resource.")


class JobStatus(CommonStatus):
    """The state of a job."""

    phase: JobPhase | None = Field(default=None, description="phase of the job.")
    progress: Progress | None = Field(default=None, description="progress of the training.")
    checkpoint: CheckpointStatus | None = Field(default=None, description="checkpoint is the newest complete one.")
    attempts: Annotated[tuple[Attempt, ...], Field(max_length=1024)] = Field(
        default=(), description="attempts of the job, oldest first."
    )
    evaluation: EvaluationStatus | None = Field(default=None, description="evaluation of the final model.")
    model: ModelStatus | None = Field(default=None, description="model is the registered version.")
    tracking: TrackingStatus | None = Field(default=None, description="tracking says where the run is recorded.")
    usage: Usage | None = Field(default=None, description="usage of the job.")


class VersionFigures(StatusModel):
    """How a version has answered since the step began, over all replicas."""

    uri: Text = Field(description="uri of the version: models:/name/3.")
    requests: int = Field(default=0, ge=0, description="requests for the base model that ended.")
    error_rate: FiniteOrNone = Field(default=None, description="errorRate: the share that ended in a 5xx.")
    first_token_seconds: FiniteOrNone = Field(
        default=None, description="firstTokenSeconds: the mean time to the first text."
    )
    output_token_seconds: FiniteOrNone = Field(
        default=None, description="outputTokenSeconds: the mean time of each token after that."
    )


class RolloutStatus(StatusModel):
    """A new version on its way through rollout.canary, or how that ended."""

    phase: RolloutPhase = Field(description="phase: Progressing, Promoted or RolledBack.")
    reason: ShortText = Field(
        description="reason: Loading, Counting or TooFewRequests while it progresses; the verdict after."
    )
    message: LongText = Field(default="", description="message says what is waited for, or what decided.")
    step: int = Field(ge=0, description="step of rollout.canary.steps, from 0.")
    weight: int = Field(ge=0, le=100, description="weight of the candidate in percent of the requests.")
    since: datetime = Field(description="since is when the step began, or the rollout ended.")
    stable: VersionFigures = Field(description="stable is the version that was there before.")
    candidate: VersionFigures = Field(description="candidate is the new version.")
    updated_at: datetime | None = Field(default=None, description="updatedAt is when these numbers were read.")
    counting_since: datetime | None = Field(
        default=None, description="countingSince is when a replica first took this step's share."
    )
    restarts: int = Field(default=0, ge=0, description="restarts of steps whose replicas had all ended.")
    generation: int = Field(default=0, ge=0, description="generation of the spec that this was decided for.")


class ServiceStatus(CommonStatus):
    """The state of a service."""

    phase: ServicePhase | None = Field(default=None, description="phase of the service.")
    url: Text | None = Field(default=None, description="url at which the service answers.")
    model: ModelStatus | None = Field(default=None, description="model is the version in use.")
    adapters: Annotated[tuple[AdapterStatus, ...], Field(max_length=256)] | None = Field(
        default=None, description="adapters in use beside it."
    )
    rollout: RolloutStatus | None = Field(default=None, description="rollout of a new version by rollout.canary.")
    replicas: int | None = Field(default=None, ge=0, description="replicas that run.")
    ready_replicas: int | None = Field(default=None, ge=0, description="readyReplicas that answer.")
    usage: Usage | None = Field(default=None, description="usage of the service.")
