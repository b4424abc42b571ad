"""Blocks of the spec that more than one kind has: where models and data come from, what computes, what is kept."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from plinth_api import base
from plinth_api.base import (
    ApiModel,
    FreeForm,
    LabelName,
    ModelName,
    Name,
    ObjectName,
    Quantity,
    Rule,
    SecretRef,
    ShortText,
    at_most_one_of,
    exactly_one_of,
)

_URI = r"^((hf|s3|gs|abfs|abfss|pvc|file|http|https)://|models:/|runs:/)[^\s]+$"
_METRIC = r"^[A-Za-z][A-Za-z0-9_@]*$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_ABSOLUTE = r"^/.*$"
_BETTER_THAN = r"^(base|champion|models:/[^\s]+)$"

PATTERN_WORDS = {
    **base.PATTERN_WORDS,
    _URI: "must be a URI such as pvc://claim/path, file:///path, hf://org/name, models:/name@alias or s3://bucket/path",
    _METRIC: "must be a metric's name: letters, digits, '_' and '@', starting with a letter",
    _VARIABLE: "must be a variable's name: letters, digits and '_', not starting with a digit",
    _ABSOLUTE: "must be an absolute path",
    _BETTER_THAN: "must be base, champion or a models:/ URI",
}
"""What a text that misses one of these patterns is told."""

Uri = Annotated[str, StringConstraints(max_length=1024, pattern=_URI)]
"""hf://org/name@revision, models:/name@alias, runs:/id/path, s3://, gs://, abfs://, pvc://claim/path, file:///path,
https://."""

MetricName = Annotated[str, StringConstraints(max_length=63, pattern=_METRIC)]


class TokenizerTrain(ApiModel):
    """A byte-level BPE tokenizer trained on the job's own training data."""

    vocab_size: int = Field(
        default=32768, ge=300, le=1048576, description="vocabSize is the number of tokens, special tokens included."
    )


class Tokenizer(ApiModel):
    """Where the tokenizer comes from."""

    rules = (exactly_one_of("train", "uri"),)

    train: TokenizerTrain | None = Field(
        default=None, description="train a byte-level BPE tokenizer on the training data."
    )
    uri: Uri | None = Field(default=None, description="uri of a Hugging Face folder that has a tokenizer.")


class ModelRef(ApiModel):
    """An existing model, by URI."""

    uri: Uri = Field(
        description="uri of the model: hf://org/name@revision, models:/name@alias, models:/name/3, runs:/id/path, file:///path."
    )
    secret_ref: SecretRef | None = Field(
        default=None, description="secretRef names the Secret with credentials for the uri."
    )


class DataSource(ApiModel):
    """One source of examples."""

    uri: Uri = Field(
        description="uri of a file, a folder or a glob (jsonl, parquet, arrow, csv, txt), or hf://datasets/org/name."
    )
    weight: float = Field(
        default=1.0,
        ge=0.001,
        le=1000,
        description="weight says how many times one epoch passes over this source; 0.5 takes half of its documents, "
        "drawn anew in each epoch.",
    )
    format: Literal["jsonl", "parquet", "arrow", "csv", "txt", "imageFolder", "webdataset"] | None = Field(
        default=None, description="format of the files; told from the file's ending when left out."
    )
    split: ShortText | None = Field(default=None, description="split of a data set from a hub; train when left out.")
    secret_ref: SecretRef | None = Field(
        default=None, description="secretRef names the Secret with credentials for the uri."
    )


class Validation(ApiModel):
    """The examples that are kept out of training."""

    rules = (exactly_one_of("fraction", "sources"),)

    fraction: float | None = Field(
        default=None, ge=0.0001, le=0.5, description="fraction of the training documents that is kept for validation."
    )
    sources: Annotated[tuple[DataSource, ...], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="sources of validation examples."
    )


class Columns(ApiModel):
    """Which column of the data holds what, where the names are not the usual ones."""

    text: ShortText | None = Field(default=None, description="text is the column with the document.")
    messages: ShortText | None = Field(default=None, description="messages is the column with the chat messages.")
    prompt: ShortText | None = Field(default=None, description="prompt is the column with the prompt.")
    completion: ShortText | None = Field(default=None, description="completion is the column with the answer.")
    chosen: ShortText | None = Field(default=None, description="chosen is the column with the preferred answer.")
    rejected: ShortText | None = Field(
        default=None, description="rejected is the column with the answer not preferred."
    )
    label: ShortText | None = Field(default=None, description="label is the column with the class.")
    image: ShortText | None = Field(default=None, description="image is the column with the image.")
    audio: ShortText | None = Field(default=None, description="audio is the column with the sound.")


class Prepare(ApiModel):
    """What is done to the documents before they are tokenized."""

    dedup: Literal["exact", "minhash"] | None = Field(
        default=None, description="dedup drops documents that are the same, or nearly."
    )
    min_characters: int | None = Field(
        default=None, ge=1, le=1000000, description="minCharacters drops shorter documents."
    )
    languages: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="languages keeps documents in these languages (ISO 639-1)."
    )
    redact: (
        Annotated[
            tuple[Literal["email", "ipAddress", "phone", "creditCard", "secret"], ...],
            Field(min_length=1, max_length=5),
        ]
        | None
    ) = Field(default=None, description="redact replaces personal data of these kinds.")
    cache: Uri | None = Field(default=None, description="cache is where prepared data is kept for the next job.")


class Elastic(ApiModel):
    """Bounds of a number of workers that moves: up where nodes join, down where they go."""

    rules = (
        Rule(
            cel="self.minWorkers <= self.maxWorkers",
            check=lambda elastic: elastic.min_workers <= elastic.max_workers,
            message="minWorkers must be at most maxWorkers",
        ),
    )

    min_workers: int = Field(ge=1, le=4096, description="minWorkers is the fewest workers that the job trains with.")
    max_workers: int = Field(ge=1, le=4096, description="maxWorkers is the most workers that the job trains with.")


class Resources(ApiModel):
    """What one worker or replica asks for."""

    gpus: int = Field(default=0, ge=0, le=16, description="gpus of one worker.")
    cpus: Quantity = Field(default=1, description="cpus of one worker, as a quantity: 8, or 500m.")
    memory: Quantity | None = Field(default=None, description="memory of one worker, as a quantity: 96Gi.")


class Accelerator(ApiModel):
    """Which accelerator the workers need."""

    product: ShortText | None = Field(
        default=None, description="product as the node label nvidia.com/gpu.product spells it: NVIDIA-H100-80GB-HBM3."
    )
    resource: ShortText = Field(default="nvidia.com/gpu", description="resource name of the accelerator.")


class Parallelism(ApiModel):
    """How the model and the batch are spread over the workers; the product of the sizes must divide workers."""

    shard: int | None = Field(
        default=None, ge=1, le=4096, description="shard splits weights, gradients and optimizer (FSDP2)."
    )
    replicate: int | None = Field(
        default=None, ge=1, le=4096, description="replicate is the number of full copies (HSDP with shard)."
    )
    tensor: int | None = Field(default=None, ge=1, le=64, description="tensor splits each layer's matrices.")
    context: int | None = Field(default=None, ge=1, le=64, description="context splits the sequence.")


class Toleration(ApiModel):
    """A toleration, as in pods."""

    key: ShortText | None = Field(default=None, description="key of the taint.")
    operator: Literal["Exists", "Equal"] | None = Field(
        default=None, description="operator that relates key and value."
    )
    value: ShortText | None = Field(default=None, description="value of the taint.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="effect of the taint."
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, description="tolerationSeconds bounds a NoExecute toleration."
    )


class SecretKeyRef(ApiModel):
    """One key of a Secret."""

    name: ObjectName = Field(description="name of the Secret.")
    key: ShortText = Field(description="key in the Secret.")


class EnvVar(ApiModel):
    """An environment variable of the workload."""

    rules = (at_most_one_of("value", "secretKeyRef"),)

    name: Annotated[str, StringConstraints(max_length=253, pattern=_VARIABLE)] = Field(
        description="name of the variable."
    )
    value: Annotated[str, StringConstraints(max_length=4096)] | None = Field(
        default=None, description="value of the variable."
    )
    secret_key_ref: SecretKeyRef | None = Field(default=None, description="secretKeyRef takes the value from a Secret.")


class Volume(ApiModel):
    """A PersistentVolumeClaim mounted into the workload, beside those that pvc:// URIs mount by themselves."""

    claim_name: ObjectName = Field(description="claimName of the PersistentVolumeClaim.")
    mount_path: Annotated[str, StringConstraints(max_length=1024, pattern=_ABSOLUTE)] = Field(
        description="mountPath in the container."
    )
    read_only: bool = Field(default=False, description="readOnly mounts the volume for reading.")


class PodOptions(ApiModel):
    """How the pods are made and where they go; it has no meaning on a laptop."""

    accelerator: Accelerator | None = Field(default=None, description="accelerator that the pods need.")
    queue_name: LabelName | None = Field(default=None, description="queueName is the Kueue LocalQueue.")
    image: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = Field(
        default=None, description="image of the workload; the operator's default when left out."
    )
    image_pull_secrets: Annotated[tuple[SecretRef, ...], Field(max_length=16)] | None = Field(
        default=None, description="imagePullSecrets of the pods."
    )
    service_account_name: ObjectName | None = Field(default=None, description="serviceAccountName of the pods.")
    priority_class_name: ObjectName | None = Field(default=None, description="priorityClassName of the pods.")
    node_selector: Annotated[dict[str, ShortText], Field(max_length=32)] | None = Field(
        default=None, description="nodeSelector of the pods."
    )
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] | None = Field(
        default=None, description="tolerations of the pods."
    )
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] | None = Field(
        default=None, description="env adds environment variables to the workload."
    )
    volumes: Annotated[tuple[Volume, ...], Field(max_length=16)] | None = Field(
        default=None, description="volumes mounts more claims."
    )
    pod_template: FreeForm | None = Field(
        default=None,
        description="podTemplate is merged over the rendered pod template (strategic merge): the escape hatch.",
    )


class Compute(PodOptions):
    """The workers of a job."""

    workers: int = Field(default=1, ge=1, le=4096, description="workers is the number of training processes.")
    elastic: Elastic | None = Field(default=None, description="elastic lets workers, who begin, become more or fewer.")
    per_worker: Resources = Field(default=Resources(), description="perWorker is what one worker asks for.")
    parallelism: Parallelism | None = Field(
        default=None,
        description="parallelism of the training; all workers shard on GPUs, all replicate on CPUs when left out.",
    )

    def data_size(self) -> int:
        """The number of shares in which a step's rows are read; workers that hold a layer together read the same."""
        return max(1, self.workers // ((self.parallelism and self.parallelism.tensor) or 1))

    def shard_size(self) -> int:
        """The number of parts, beside those of tensor, in which one copy of the model is held.

        What is left out of shard and replicate takes the workers that are left: GPUs shard, CPUs replicate.
        """
        sizes, shares = self.parallelism or Parallelism(), self.data_size()
        left = shares if self.per_worker.gpus else 1
        return sizes.shard or (shares // sizes.replicate if sizes.replicate else left)


class Checkpoint(ApiModel):
    """Where and how often the training state is saved."""

    uri: Uri | None = Field(default=None, description="uri of the checkpoints' folder; the platform's when left out.")
    every_steps: int | None = Field(
        default=None, ge=1, le=10000000, description="everySteps between checkpoints; a tenth of the run when left out."
    )
    keep: int = Field(default=2, ge=1, le=100, description="keep is the number of checkpoints that are kept.")
    resume_from: Uri | None = Field(
        default=None, description="resumeFrom goes on from the newest complete checkpoint in another job's folder."
    )
    secret_ref: SecretRef | None = Field(default=None, description="secretRef names a Secret with the uris' keys.")


class GateRule(ApiModel):
    """A condition that a model must meet before its alias moves."""

    rules = (exactly_one_of("min", "max", "betterThan"), at_most_one_of("min", "by"), at_most_one_of("max", "by"))

    metric: MetricName = Field(description="metric that is compared: loss, perplexity.")
    min: float | None = Field(default=None, description="min is the least value that passes.")
    max: float | None = Field(default=None, description="max is the greatest value that passes.")
    better_than: Annotated[str, StringConstraints(max_length=512, pattern=_BETTER_THAN)] | None = Field(
        default=None,
        description="betterThan names what to beat on the same examples: base (the model that training started from), "
        "champion (the model that output.alias names now; none yet counts as beaten), or a models:/ uri.",
    )
    by: float | None = Field(default=None, ge=0, description="by is the margin, in the metric's own unit.")


class Evaluation(ApiModel):
    """When and by what the model is measured."""

    every_steps: int | None = Field(
        default=None, ge=1, le=10000000, description="everySteps between evaluations; a tenth of the run when left out."
    )
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1, max_length=32)] | None = Field(
        default=None,
        description="metrics that are computed on the validation examples; the usual ones of the objective when left "
        "out: loss and perplexity of language models.",
    )
    gate: Annotated[tuple[GateRule, ...], Field(min_length=1, max_length=16)] | None = Field(
        default=None, description="gate holds the conditions for moving output.alias; all must be met."
    )


class Output(ApiModel):
    """What becomes of the trained model."""

    model: ModelName = Field(description="model is the registered model's name, without namespace.")
    alias: ModelName | None = Field(
        default=None, description="alias that moves to the new version when the gate passes."
    )


class Tracking(ApiModel):
    """Where the run is recorded."""

    experiment: ShortText | None = Field(
        default=None,
        description="experiment in MLflow; output.model when left out. On a cluster the namespace and a dot come "
        "before it, as before models.",
    )
    secret_ref: SecretRef | None = Field(
        default=None, description="secretRef names the Secret with the MLflow credentials."
    )


class Restart(ApiModel):
    """How often a job is started again."""

    max_restarts: int = Field(
        default=3,
        ge=0,
        le=1000,
        description="maxRestarts after infrastructure failures; preemptions do not count, "
        "a user's error is never retried.",
    )


class Watchdog(ApiModel):
    """When a running job is taken for stuck or lost."""

    no_progress_seconds: int | None = Field(
        default=None,
        ge=10,
        le=604800,
        description="noProgressSeconds without anything that moves end the attempt, once "
        "a step was done: no pass over a micro batch or a validation batch, no byte of a checkpoint.",
    )
    startup_seconds: int | None = Field(
        default=None,
        ge=10,
        le=604800,
        description="startupSeconds from the start of the workers end the attempt, unless a step is done.",
    )
    on_nan: Literal["Fail", "Rollback"] = Field(
        default="Fail",
        alias="onNaN",
        description="onNaN says what a loss that is not a number does: end the job, "
        "or go back to the newest checkpoint and pass over the batches up to that step, three times at one place.",
    )
