"""The documents that workloads read: TrainRun (run.json) and ServeRun (serve.json).

One JSON document says everything a workload needs, with every default made explicit and nothing about Kubernetes in it,
so that the same document gives the same run on a laptop and on a cluster.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_serializer

from plinth_api.adaptation import Method
from plinth_api.base import ApiModel
from plinth_api.common import Elastic, GateRule
from plinth_api.engine_rules import ServingEngine
from plinth_api.job import DataFormat
from plinth_api.model_service import PromptTemplate
from plinth_api.uris import mounted

MAX_RUN_BYTES = 512 * 1024
"""A run document travels in a ConfigMap, which etcd limits to 1 MiB with everything around it."""


class RunSource(ApiModel):
    """A source of examples with its pvc:// claims replaced by paths."""

    uri: str
    weight: float
    format: Literal["jsonl", "parquet", "arrow", "csv", "txt", "imageFolder"] | None
    split: str | None


DataTask = Literal[
    "pretrain",
    "completion",
    "instruction",
    "preference",
    "distillation",
    "classification",
    "tokenClassification",
    "embedding",
]
"""How examples are read: a key of spec.task, or pretrain."""


class RunData(ApiModel):
    """What to train on. Exactly one of the two kinds of validation is set, or none."""

    train: tuple[RunSource, ...]
    validation: tuple[RunSource, ...]
    validation_fraction: float | None
    columns: dict[str, str]
    format: DataFormat | None
    task: DataTask


class RunModel(ApiModel):
    """What to start from: `uri`, with aliases replaced by versions, or `architecture` with `config` and a tokenizer."""

    uri: str | None
    architecture: str | None
    config: dict[str, Any]
    tokenizer_uri: str | None
    tokenizer_vocab_size: int | None


class RunTraining(ApiModel):
    """How to train. Exactly one of `steps`, `epochs`, `tokens` is set."""

    steps: int | None
    epochs: float | None
    tokens: int | None
    sequence_length: int
    global_batch_size: int
    micro_batch_size: int
    auto_micro_batch_size: bool = Field(
        default=False, description="autoMicroBatchSize lets workers find a better microBatchSize, which is the most."
    )
    learning_rate: float
    schedule: Literal["cosine", "linear", "constant", "wsd"]
    warmup_steps: int
    decay_steps: int | None
    final_learning_rate_fraction: float
    optimizer: Literal["adamw", "adamw8bit", "muon"]
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    max_grad_norm: float
    precision: Literal["bf16", "fp32"]
    packing: bool
    compile: bool
    activation_checkpointing: Literal["none", "selective", "full"]
    seed: int


class RunWorkers(ApiModel):
    """The processes that train; `shard` x `replicate` x `tensor` equals `num_workers`.

    With `elastic` their number moves between its bounds, and `num_workers` is the one to begin with.
    """

    num_workers: int
    elastic: Elastic | None = None
    shard: int
    replicate: int
    tensor: int
    gpus: int
    cpus: float
    memory_bytes: int | None

    @property
    def splits_weights(self) -> bool:
        """Whether a worker has only a part of the weights."""
        return self.shard > 1 or self.tensor > 1


class RunCheckpoint(ApiModel):
    """Where state is saved. `every_steps` is None for a tenth of the run."""

    uri: str
    every_steps: int | None
    keep: int
    resume_from: str | None


class RunEvaluation(ApiModel):
    """When and by what the model is measured. `every_steps` is None for a tenth of the run."""

    every_steps: int | None
    metrics: tuple[str, ...]
    gate: tuple[GateRule, ...]


class RunOutput(ApiModel):
    """What is registered; `model` has the registry's prefix."""

    model: str
    alias: str | None
    merge: bool


class RunTracking(ApiModel):
    """Where the run is recorded. `run_id` is None where the workload creates the run itself."""

    uri: str
    experiment: str
    run_name: str
    run_id: str | None
    secret: str | None = Field(
        default=None, description="secret is the name of the Secret with MLflow's credentials, for messages."
    )
    tags: dict[str, str]


class RunWatchdog(ApiModel):
    """When a run is taken for stuck, None for never, and what a loss that is not a number does."""

    no_progress_seconds: int | None = None
    startup_seconds: int | None = None
    on_nan: Literal["Fail", "Rollback"] = Field(default="Fail", alias="onNaN")


class TrainRun(ApiModel):
    """Everything that a training workload needs."""

    version: Literal[1] = 1
    kind: Literal["PretrainJob", "FineTuneJob"]
    name: str
    uid: str
    objective: str = Field(description="objective is a key of spec.objective, or of spec.task.")
    objective_settings: dict[str, Any] = Field(
        default={}, description="objectiveSettings are what the job has below the key, with defaults."
    )
    model: RunModel
    method: Method
    data: RunData
    training: RunTraining
    workers: RunWorkers
    checkpoint: RunCheckpoint
    evaluation: RunEvaluation
    output: RunOutput
    tracking: RunTracking
    watchdog: RunWatchdog = RunWatchdog()
    work_dir: str = Field(
        description="workDir is a folder for caches, progress and the model on its way to the registry."
    )

    @field_serializer("method")
    def _only_the_chosen_method(self, method: Method) -> dict[str, Any]:
        return method.to_wire()


class ServeLimits(ApiModel):
    """What one request may ask for; None for no limit but the model's context."""

    max_body_bytes: int = 4 * 2**20
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    request_timeout_seconds: int = 600


class ServeAdapter(ApiModel):
    """An adapter beside the model."""

    name: str = Field(description="name by which requests ask for it.")
    uri: str = Field(description="uri with the alias replaced by a version.")


class ServeCandidate(ApiModel):
    """A version that is tried on a share of the requests, loaded beside the one in service."""

    uri: str = Field(description="uri with the alias replaced by a version.")
    weight: int = Field(ge=1, le=99, description="weight of it in percent of the requests for the base model.")


class ServeModel(ApiModel):
    """The model version in use and its limits: the part of a service that changes in place (Serve's user_config)."""

    uri: str = Field(description="uri with the alias replaced by a version.")
    adapters: tuple[ServeAdapter, ...] = ()
    prompt: PromptTemplate | None = None
    limits: ServeLimits = ServeLimits()
    aliases: Mapping[str, str] = Field(
        default_factory=dict,
        description="aliases that are followed, by name of the service or adapter: requests may ask for name@alias.",
    )
    candidate: ServeCandidate | None = None
    holds_requests: bool | None = Field(
        default=None,
        description="holdsRequests until the model is loaded, in place of a refusal: of what scales to zero.",
    )

    @property
    def prompt_hash(self) -> str:
        """Changes with what chats start with; empty where they start with nothing."""
        return self.prompt.digest if self.prompt else ""

    def mounted(self, volume_root: str) -> Self:
        """The same with claims as paths below `volume_root`: as replicas find them, not as users know them."""

        def place(uri: str) -> dict[str, str]:
            return {"uri": mounted(uri, volume_root)}

        adapters = tuple(adapter.model_copy(update=place(adapter.uri)) for adapter in self.adapters)
        candidate = self.candidate and self.candidate.model_copy(update=place(self.candidate.uri))
        return self.model_copy(update={**place(self.uri), "adapters": adapters, "candidate": candidate})


_IDLE_POLICY = "plinth_workloads.serving.idle_policy:ScaleToZero"
"""Ray Serve's own looks at requests every six seconds, and sees no short one: it would go to zero in use."""


class ServeScaling(ApiModel):
    """How many replicas there are: like the model, a part of a service that changes in place (Serve's config)."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: int = 16
    idle_seconds: int = 300

    @property
    def to_zero(self) -> bool:
        """Whether the last replica goes where nobody asks."""
        return self.min_replicas == 0

    def deployment_options(self) -> dict[str, Any]:
        """The options of a Ray Serve deployment that say how many replicas it has."""
        if self.min_replicas == self.max_replicas:
            return {"num_replicas": self.max_replicas}
        bounds: dict[str, Any] = {
            "min_replicas": self.min_replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.target_ongoing_requests,
        }
        if self.to_zero:
            policy = {"policy_function": _IDLE_POLICY, "policy_kwargs": {"idle_seconds": self.idle_seconds}}
            # The policy has waited already.
            bounds |= {"downscale_to_zero_delay_s": 0, "policy": policy}
        return {"autoscaling_config": bounds}


ServingTask = Literal["generate", "embed", "classify"]
"""What a service does with texts."""

WantedTask = Literal["auto"] | ServingTask
"""What a service is asked to do; auto is told from the model."""


class ServeRun(ApiModel):
    """Everything that a serving workload needs.

    `model` and `scaling` have defaults because the arguments of a Serve application go without them: a change of
    arguments restarts replicas, a change of the deployment's options, where the values are then, does not.
    """

    version: Literal[1] = 1
    name: str = Field(description="name under which the model is served.")
    engine: ServingEngine
    task: WantedTask = "auto"
    model: ServeModel = ServeModel(uri="")
    tracking_uri: str
    gpus: int
    tensor_parallel: int | None = Field(
        default=None, description="tensorParallel is the number of GPUs that hold one model of vllm; None of torch."
    )
    cpus: float
    compile: bool | None = Field(default=None, description="compile the model; None for the engine's own way.")
    scaling: ServeScaling = ServeScaling()
    api_keys_dir: str | None = Field(
        default=None, description="apiKeysDir has a key in each file; without it none is asked for."
    )
    probe_port: int | None = Field(
        default=None, description="probePort of a replica's own for health, metrics and state, which are no requests."
    )
    model_cache_dir: str | None = Field(
        default=None, description="modelCacheDir keeps downloaded models for all who have it; without it workDir does."
    )
    model_cache_bytes: int | None = Field(
        default=None, description="modelCacheBytes that it may hold; without it what its volume has."
    )
    work_dir: str

    def mounted(self, volume_root: str) -> Self:
        """The document as replicas read it: `ServeModel.mounted`."""
        return self.model_copy(update={"model": self.model.mounted(volume_root)})

    @property
    def models_dir(self) -> str:
        """Folder of downloaded models."""
        return self.model_cache_dir or f"{self.work_dir}/models"

    def deployment_options(self) -> dict[str, Any]:
        """The options of its Ray Serve deployment that change in place, but for the model."""
        options = self.scaling.deployment_options()
        if self.scaling.to_zero:
            # A request that comes while the last replica is told to go is answered all the same.
            options["graceful_shutdown_timeout_s"] = self.model.limits.request_timeout_seconds
        return options
