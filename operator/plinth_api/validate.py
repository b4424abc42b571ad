"""What the schema cannot say: conflicts between fields, each found before any machine is asked for."""

import re
from collections.abc import Iterable, Iterator

from plinth_api.common import Compute, GateRule, Parallelism
from plinth_api.errors import Problem
from plinth_api.fine_tune_job import FineTuneJob
from plinth_api.model_service import Limits, ModelService
from plinth_api.objective_rules import known_metrics, metrics_of, objective_of, objective_problems, teacher_of
from plinth_api.parse import Job
from plinth_api.pretrain_job import PretrainJob
from plinth_api.quantity import parse_quantity
from plinth_api.task_rules import task_of, task_problems
from plinth_api.uris import OBJECT_STORES, holds_password, is_registry_uri, scheme_of

MODEL_SCHEMES = frozenset({"hf", "models", "runs", "pvc", "file"})
DATA_SCHEMES = frozenset({"hf", "pvc", "file", "http", "https", *OBJECT_STORES})
CHECKPOINT_SCHEMES = frozenset({"pvc", "file", *OBJECT_STORES})

KNOWN_FORMATS = frozenset({"chat", "text", "promptCompletion", "preference", "labelled"})
TASK_FORMATS = {
    "instruction": ("chat", "promptCompletion"),
    "completion": ("text", "promptCompletion"),
    "preference": ("preference",),
    "distillation": ("chat", "promptCompletion", "text"),
    "classification": ("labelled",),
    "tokenClassification": ("labelled",),
    "embedding": ("promptCompletion",),
}

_WHOLE_WEIGHTS_ONLY = ("adamw8bit", "muon")
"""Optimizers whose states or steps are of whole matrices."""

_CLAIM = re.compile(r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/|$)")


def job_problems(job: Job) -> list[Problem]:
    """Every conflict in a job's spec."""
    return [
        *_parallelism_problems(job.spec.compute, job.spec.training.optimizer.name),
        *_tensor_problems(job),
        *_four_bit_problems(job),
        *_elastic_problems(job.spec.compute),
        *_batch_problems(job),
        *_evaluation_problems(job),
        *_uri_problems(job),
        *(_pretrain_problems(job) if isinstance(job, PretrainJob) else _fine_tune_problems(job)),
    ]


def service_problems(service: ModelService) -> list[Problem]:
    """Every conflict in a service's spec."""
    return [
        *_model_uri_problems("spec.model.uri", service.spec.model.uri),
        *_adapter_problems(service),
        *_limit_problems(service.spec.limits),
    ]


def _adapter_problems(service: ModelService) -> Iterator[Problem]:
    names = {service.metadata.name}
    for index, adapter in enumerate(service.spec.adapters or ()):
        path = f"spec.adapters[{index}]"
        yield from _model_uri_problems(f"{path}.uri", adapter.uri)
        if adapter.name in names:
            yield Problem(f"{path}.name", f"{adapter.name} is the name of the service or of another adapter; change it")
        names.add(adapter.name)
    if service.spec.adapters and service.spec.task not in ("auto", "generate"):
        yield Problem("spec.adapters", f"not supported yet: adapters beside a model with task = {service.spec.task}")


def _limit_problems(limits: Limits) -> Iterator[Problem]:
    if not 2**10 <= parse_quantity(limits.max_body_bytes) <= 2**30:
        yield Problem("spec.limits.maxBodyBytes", f"{limits.max_body_bytes} must be 1Ki to 1Gi")


def _parallelism_problems(compute: Compute, optimizer: str) -> Iterator[Problem]:
    sizes, workers = compute.parallelism or Parallelism(), compute.workers
    path = "spec.compute.parallelism"
    product = (sizes.shard or 1) * (sizes.replicate or 1) * (sizes.tensor or 1) * (sizes.context or 1)
    if workers % product:
        yield Problem(
            path,
            f"the product of its sizes is {product}, which does not divide workers = {workers}; "
            f"change the sizes, or workers to a multiple of {product}",
        )
    elif sizes.shard and sizes.replicate and sizes.shard * sizes.replicate < compute.data_size():
        yield Problem(
            f"{path}.replicate",
            f"{sizes.shard} shards in {sizes.replicate} copies leave some of {workers} workers without a part; "
            f"leave replicate out, or set it to {compute.data_size() // sizes.shard}",
        )
    elif optimizer in _WHOLE_WEIGHTS_ONLY and (compute.shard_size() > 1 or (sizes.tensor or 1) > 1):
        yield Problem(
            "spec.training.optimizer.name",
            f"not supported yet: spec.training.optimizer.name = {optimizer} with sharded weights; use adamw, or set "
            f"{path}.{'shard' if compute.shard_size() > 1 else 'tensor'} to 1",
        )


def _tensor_problems(job: Job) -> Iterator[Problem]:
    sizes = job.spec.compute.parallelism
    if sizes is None or (sizes.tensor or 1) == 1:
        return
    objective, instead = objective_of(job)[0], "leave it out, and raise shard"
    path = "spec.compute.parallelism.tensor"
    if isinstance(job, FineTuneJob) and job.spec.method.full is None:
        yield Problem(path, f"not supported yet: {path} with method {job.spec.method.name}; {instead}")
    elif objective != "causalLM":
        yield Problem(path, f"not supported yet: {path} for {objective}; {instead}")


def _four_bit_problems(job: Job) -> Iterator[Problem]:
    if not isinstance(job, FineTuneJob) or job.spec.method.qlora is None or job.spec.compute.shard_size() == 1:
        return
    yield Problem(
        "spec.method.qlora",
        "not supported yet: spec.method.qlora with sharded weights; set spec.compute.parallelism.shard to 1: each "
        "worker then holds the model in 4 bits",
    )


def _elastic_problems(compute: Compute) -> Iterator[Problem]:
    elastic, path = compute.elastic, "spec.compute.elastic"
    if elastic is None:
        return
    if not elastic.min_workers <= compute.workers <= elastic.max_workers:
        yield Problem(
            "spec.compute.workers",
            f"{compute.workers} workers, with which the job begins, are not within elastic's bounds; use "
            f"{elastic.min_workers} to {elastic.max_workers}",
        )
    if compute.queue_name:
        yield Problem(path, f"not supported yet: {path} in a queue, which admits a fixed number of pods; leave one out")
    if compute.data_size() < compute.workers or compute.shard_size() not in (1, compute.workers):
        yield Problem(
            path,
            f"not supported yet: {path} with weights that are split in two ways; leave spec.compute.parallelism out, "
            f"or set its shard to 1 or to workers = {compute.workers}",
        )


def _batch_problems(job: Job) -> Iterator[Problem]:
    training, shares = job.spec.training, job.spec.compute.data_size()
    rows, left = divmod(training.global_batch_size, shares)
    if left:
        near = max(shares, round(training.global_batch_size / shares) * shares)
        workers = "workers" if shares == job.spec.compute.workers else "groups of workers"
        yield Problem(
            "spec.training.globalBatchSize",
            f"{training.global_batch_size} rows cannot be shared equally by {shares} {workers}; use {near}",
        )
    elif isinstance(training.micro_batch_size, int) and rows % training.micro_batch_size:
        yield Problem(
            "spec.training.microBatchSize",
            f"{training.micro_batch_size} does not divide the {rows} rows that one worker has in a step",
        )
    if training.schedule.decay_steps is not None and training.schedule.name != "wsd":
        yield Problem("spec.training.schedule.decaySteps", f"goes with wsd, not with {training.schedule.name}")
    if training.steps is not None and training.schedule.warmup_steps > training.steps:
        yield Problem("spec.training.schedule.warmupSteps", f"must be at most steps = {training.steps}")
    if training.precision == "fp8" and not job.spec.compute.per_worker.gpus:
        yield Problem("spec.training.precision", "fp8 needs GPUs; use auto, or set spec.compute.perWorker.gpus")


def _evaluation_problems(job: Job) -> Iterator[Problem]:
    evaluation, known = job.spec.evaluation, known_metrics(job)
    for index, metric in enumerate(evaluation.metrics or ()):
        if metric not in known:
            yield Problem(f"spec.evaluation.metrics[{index}]", f"nobody computes {metric}; known: {_listed(known)}")
    if evaluation.gate and job.spec.data.validation is None:
        yield Problem("spec.evaluation.gate", "needs validation examples; set spec.data.validation")
    for index, rule in enumerate(evaluation.gate or ()):
        yield from _gate_problems(job, rule, f"spec.evaluation.gate[{index}]")


def _gate_problems(job: Job, rule: GateRule, path: str) -> Iterator[Problem]:
    metrics = metrics_of(job)
    if rule.metric not in metrics:
        yield Problem(f"{path}.metric", f"{rule.metric} is not in spec.evaluation.metrics ({', '.join(metrics)})")
    if rule.better_than == "base" and job.spec.model.uri is None:
        yield Problem(
            f"{path}.betterThan", "base is the model that training starts from; this job starts from random weights"
        )
    if rule.better_than == "champion" and job.spec.output.alias is None:
        yield Problem(f"{path}.betterThan", "champion is the model that output.alias names; set spec.output.alias")
    if rule.better_than and rule.better_than.startswith("models:/"):
        yield from _model_uri_problems(f"{path}.betterThan", rule.better_than)


def _uri_problems(job: Job) -> Iterator[Problem]:
    data, checkpoint = job.spec.data, job.spec.checkpoint
    sources = [(f"spec.data.train[{i}].uri", source.uri) for i, source in enumerate(data.train)]
    if data.validation and data.validation.sources:
        sources += [
            (f"spec.data.validation.sources[{i}].uri", source.uri) for i, source in enumerate(data.validation.sources)
        ]
    for path, uri in sources:
        yield from _scheme_problems(path, uri, DATA_SCHEMES)
    for path, maybe_uri in (
        ("spec.checkpoint.uri", checkpoint.uri),
        ("spec.checkpoint.resumeFrom", checkpoint.resume_from),
    ):
        if maybe_uri:
            yield from _scheme_problems(path, maybe_uri, CHECKPOINT_SCHEMES)
    if job.spec.model.uri:
        yield from _model_uri_problems("spec.model.uri", job.spec.model.uri)
    if teacher := teacher_of(job):
        yield from _model_uri_problems("spec.task.distillation.teacher.uri", teacher.uri)


def _model_uri_problems(path: str, uri: str) -> Iterator[Problem]:
    yield from _scheme_problems(path, uri, MODEL_SCHEMES)
    if scheme_of(uri) == "models" and not is_registry_uri(uri):
        yield Problem(
            path, f"{uri} must name a version or an alias: models:/<name>/<version> or models:/<name>@<alias>"
        )


def _scheme_problems(path: str, uri: str, supported: Iterable[str]) -> Iterator[Problem]:
    if scheme_of(uri) not in supported:
        yield Problem(path, f"not supported yet: {path} with {scheme_of(uri)}:; use one of {_listed(supported)}")
    elif scheme_of(uri) == "file" and not uri.startswith("file:///"):
        yield Problem(path, f"{uri} must hold an absolute path: file:///path")
    elif scheme_of(uri) == "pvc" and not _CLAIM.match(uri):
        yield Problem(path, f"{uri} must name a claim and a path in it: pvc://claim/path")
    elif scheme_of(uri) in ("pvc", "file") and ".." in uri.split("/"):
        yield Problem(path, f"{uri} must not hold '..'")
    elif holds_password(uri):
        yield Problem(path, "must not hold a password; put the credentials into a Secret and name it in secretRef")


def _pretrain_problems(job: PretrainJob) -> Iterator[Problem]:
    yield from objective_problems(job)
    model, length = job.spec.model, job.spec.training.sequence_length
    if model.tokenizer and model.tokenizer.uri:
        yield from _model_uri_problems("spec.model.tokenizer.uri", model.tokenizer.uri)
    positions = (model.config or {}).get("max_position_embeddings")
    if isinstance(positions, int) and length > positions:
        yield Problem(
            "spec.training.sequenceLength",
            f"{length} tokens do not fit the model's {positions} positions; lower it, or raise "
            "spec.model.config.max_position_embeddings",
        )


def _fine_tune_problems(job: FineTuneJob) -> Iterator[Problem]:
    task = task_of(job)
    yield from task_problems(job)
    fitting, given = TASK_FORMATS.get(task), job.spec.data.format
    if fitting and given in KNOWN_FORMATS and given not in fitting:
        yield Problem("spec.data.format", f"{given} does not fit task {task}; use {' or '.join(fitting)}")
    if job.spec.method.prefix and job.spec.training.activation_checkpointing != "none":
        yield Problem(
            "spec.training.activationCheckpointing",
            "does not go with method prefix, whose keys and values would be appended again when activations are "
            "computed again; set it to none, or use method prompt",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
