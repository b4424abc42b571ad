"""From a resource and the settings of a place to the run document: every default explicit, every conflict named.

Pure: what only the outside world knows (which version an alias names, the MLflow run's id) comes in as arguments.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from plinth_api.adaptation import Full, Method
from plinth_api.common import Compute, DataSource
from plinth_api.engine_rules import engine_of, engine_problems
from plinth_api.errors import InvalidSpec, Problem
from plinth_api.fine_tune_job import FineTuneJob
from plinth_api.model_service import Limits, ModelService
from plinth_api.objective_rules import facts_of, metrics_of, objective_of, packs_rows, teacher_of
from plinth_api.parse import Job, Resource
from plinth_api.pretrain_job import PretrainJob, PretrainModel
from plinth_api.quantity import parse_quantity
from plinth_api.run import (
    MAX_RUN_BYTES,
    RunCheckpoint,
    RunData,
    RunEvaluation,
    RunModel,
    RunOutput,
    RunSource,
    RunTracking,
    RunTraining,
    RunWatchdog,
    RunWorkers,
    ServeAdapter,
    ServeLimits,
    ServeModel,
    ServeRun,
    ServeScaling,
    TrainRun,
)
from plinth_api.run_tags import KIND, UID
from plinth_api.support import unsupported_problems
from plinth_api.task_rules import data_task
from plinth_api.uris import is_registry_uri, mounted, pinned, registry_parts, registry_uri, scheme_of, unmounted
from plinth_api.validate import job_problems, service_problems

MICRO_BATCH_TOKENS = 16384
"""Rows of one pass are chosen so that they hold at most so many tokens, where the user gives no microBatchSize."""


@dataclass(frozen=True, slots=True)
class ResolveSettings:
    """What the place where the workload runs decides.

    Attributes:
        uid: Identity of the job over all its attempts; names its folders.
        volume_root: Folder under which claims are mounted by name.
        checkpoint_root: Folder for checkpoints of jobs that name none.
        work_dir: Folder of this job for caches, progress and output.
        tracking_uri: MLflow's address.
        tracking_secret: The Secret with the credentials of jobs that name none; empty for none.
        registry_prefix: Put before the names of models and experiments: `<namespace>.` on a cluster.
        run_id: The MLflow run, where it exists already.
        tags: Tags of the MLflow run and of the model version.
        api_keys_dir: Folder with the API keys of a service that asks for some; None where nothing puts them there.
        has_vllm: Whether services may be given vLLM here.
        probe_port: On which each replica answers probes; None where replicas share a machine.
        model_cache_dir: Folder of models that services share; None for one in the work folder.
        model_cache_bytes: What it may hold; None for what its volume has.
    """

    uid: str
    volume_root: str
    checkpoint_root: str
    work_dir: str
    tracking_uri: str
    tracking_secret: str = ""
    registry_prefix: str = ""
    run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    api_keys_dir: str | None = None
    has_vllm: bool = False
    probe_port: int | None = None
    model_cache_dir: str | None = None
    model_cache_bytes: int | None = None


def spec_hash(resource: Resource) -> str:
    """Eight hexadecimal digits that change when kind, name or spec of the resource change."""
    identity = json.dumps([resource.kind, resource.metadata.name, resource.spec.to_wire()], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def referenced_aliases(resource: Resource, registry_prefix: str) -> tuple[str, ...]:
    """The models:/name@alias URIs whose version must be known before the resource can be resolved."""
    uris = [resource.spec.model.uri or ""]
    if isinstance(resource, PretrainJob) and resource.spec.model.tokenizer:
        uris.append(resource.spec.model.tokenizer.uri or "")
    if isinstance(resource, ModelService):
        uris += [adapter.uri for adapter in resource.spec.adapters or ()]
    else:
        uris += [teacher.uri] if (teacher := teacher_of(resource)) else []
        uris += [rule.better_than or "" for rule in resource.spec.evaluation.gate or ()]
    registry = [registry_uri(uri, registry_prefix) for uri in uris if is_registry_uri(uri)]
    return tuple(dict.fromkeys(uri for uri in registry if "@" in uri))


def resolve_train_run(job: Job, settings: ResolveSettings, versions: Mapping[str, str]) -> TrainRun:
    """The run document of a job.

    Args:
        job: What the user asks for.
        settings: What the place decides.
        versions: For each of `referenced_aliases`, the same URI with a version: models:/name/3.

    Raises:
        InvalidSpec: The spec contradicts itself or asks for what is not supported yet.
    """
    problems = [*unsupported_problems(job), *job_problems(job)]
    if problems:
        raise InvalidSpec(*problems)
    objective, objective_settings = objective_of(job)
    if teacher := teacher_of(job):
        objective_settings["teacher"] = {"uri": _resolve_model_uri(teacher.uri, settings, versions)}
    run = TrainRun(
        kind=job.kind,
        name=job.metadata.name,
        uid=settings.uid,
        objective=objective,
        objective_settings=objective_settings,
        model=_resolve_model(job, settings, versions),
        method=_resolve_method(job),
        data=_resolve_data(job, settings),
        training=_resolve_training(job),
        workers=resolve_workers(job.spec.compute),
        checkpoint=_resolve_checkpoint(job, settings),
        evaluation=_resolve_evaluation(job, settings, versions),
        output=RunOutput(
            model=f"{settings.registry_prefix}{job.spec.output.model}",
            alias=job.spec.output.alias,
            merge=isinstance(job, FineTuneJob) and job.spec.output.merge,
        ),
        tracking=_resolve_tracking(job, settings),
        watchdog=RunWatchdog(**dict(job.spec.watchdog)),
        work_dir=settings.work_dir,
    )
    if len(run.model_dump_json(by_alias=True).encode()) > MAX_RUN_BYTES:
        raise InvalidSpec(Problem("spec", f"is too large: the run document has a limit of {MAX_RUN_BYTES // 1024} KiB"))
    return run


def resolve_serve_run(service: ModelService, settings: ResolveSettings, versions: Mapping[str, str]) -> ServeRun:
    """The serving document of a service, before `mounted`; arguments and errors as in `resolve_train_run`.

    What lies on a claim is pvc:// in it, as statuses and what replicas say of themselves have it.
    """
    problems = [
        *unsupported_problems(service),
        *service_problems(service),
        *engine_problems(service, has_vllm=settings.has_vllm),
    ]
    if problems:
        raise InvalidSpec(*problems)
    spec = service.spec
    engine = engine_of(service, has_vllm=settings.has_vllm)
    return ServeRun(
        name=service.metadata.name,
        engine=engine,
        task=spec.task,
        model=ServeModel(
            uri=_resolve_served_uri(spec.model.uri, settings, versions),
            adapters=tuple(
                ServeAdapter(name=adapter.name, uri=_resolve_served_uri(adapter.uri, settings, versions))
                for adapter in spec.adapters or ()
            ),
            prompt=spec.prompt,
            limits=_resolve_limits(spec.limits),
            aliases=_followed_aliases(service),
            holds_requests=spec.scaling.min_replicas == 0 or None,
        ),
        tracking_uri=settings.tracking_uri,
        gpus=spec.compute.per_replica.gpus,
        tensor_parallel=spec.compute.tensor_parallel if engine == "vllm" else None,
        cpus=parse_quantity(spec.compute.per_replica.cpus),
        compile=spec.compile,
        scaling=ServeScaling(
            min_replicas=spec.scaling.min_replicas,
            max_replicas=spec.scaling.max_replicas,
            target_ongoing_requests=spec.scaling.target_ongoing_requests,
            idle_seconds=spec.scaling.idle_seconds,
        ),
        api_keys_dir=settings.api_keys_dir if spec.access.api_key_secret_ref else None,
        # vLLM's replicas have none.
        probe_port=settings.probe_port if engine == "torch" else None,
        model_cache_dir=settings.model_cache_dir,
        model_cache_bytes=settings.model_cache_bytes,
        work_dir=settings.work_dir,
    )


def _followed_aliases(service: ModelService) -> dict[str, str]:
    """By name of the service and its adapters."""
    uris = {service.metadata.name: service.spec.model.uri}
    uris |= {adapter.name: adapter.uri for adapter in service.spec.adapters or ()}
    found = {name: registry_parts(uri)[2] for name, uri in uris.items() if is_registry_uri(uri)}
    return {name: alias for name, alias in found.items() if alias is not None}


def _resolve_limits(limits: Limits) -> ServeLimits:
    return ServeLimits(**{**dict(limits), "max_body_bytes": int(parse_quantity(limits.max_body_bytes))})


def _resolve_served_uri(uri: str, settings: ResolveSettings, versions: Mapping[str, str]) -> str:
    if is_registry_uri(uri):
        return pinned(registry_uri(uri, settings.registry_prefix), versions)
    # Who writes the path of a claim is understood too: replicas cannot tell it from pvc://.
    return unmounted(uri, settings.volume_root)


def _resolve_model_uri(uri: str, settings: ResolveSettings, versions: Mapping[str, str]) -> str:
    return mounted(_resolve_served_uri(uri, settings, versions), settings.volume_root)


def _resolve_model(job: Job, settings: ResolveSettings, versions: Mapping[str, str]) -> RunModel:
    model = job.spec.model
    new = model if isinstance(model, PretrainModel) else None
    tokenizer = new.tokenizer if new else None
    return RunModel(
        uri=_resolve_model_uri(model.uri, settings, versions) if model.uri else None,
        architecture=new.architecture if new else None,
        config=(new.config or {}) if new else {},
        tokenizer_uri=_resolve_model_uri(tokenizer.uri, settings, versions) if tokenizer and tokenizer.uri else None,
        tokenizer_vocab_size=tokenizer.train.vocab_size if tokenizer and tokenizer.train else None,
    )


def _resolve_method(job: Job) -> Method:
    return job.spec.method if isinstance(job, FineTuneJob) else Method(full=Full())


def _resolve_source(source: DataSource, settings: ResolveSettings) -> RunSource:
    file_format = source.format
    assert file_format != "webdataset"
    return RunSource(
        uri=mounted(source.uri, settings.volume_root), weight=source.weight, format=file_format, split=source.split
    )


def _resolve_data(job: Job, settings: ResolveSettings) -> RunData:
    data, validation = job.spec.data, job.spec.data.validation
    sources = validation.sources if validation and validation.sources else ()
    return RunData(
        train=tuple(_resolve_source(source, settings) for source in data.train),
        validation=tuple(_resolve_source(source, settings) for source in sources),
        validation_fraction=validation.fraction if validation else None,
        columns=data.columns.to_wire() if data.columns else {},
        format=job.spec.data.format if isinstance(job, FineTuneJob) else facts_of(job).data_format,
        task=data_task(job),
    )


def _resolve_training(job: Job) -> RunTraining:
    training, workers = job.spec.training, resolve_workers(job.spec.compute)
    on_gpu = workers.gpus > 0
    worker_batch = training.global_batch_size // job.spec.compute.data_size()
    weight_decay = training.optimizer.weight_decay
    precision: Literal["bf16", "fp32"] = "bf16" if on_gpu else "fp32"
    if training.precision in ("bf16", "fp32"):
        precision = "bf16" if training.precision == "bf16" else "fp32"
    return RunTraining(
        steps=training.steps,
        epochs=training.epochs,
        tokens=training.tokens,
        sequence_length=training.sequence_length,
        global_batch_size=training.global_batch_size,
        micro_batch_size=_rows_of_a_pass(job, worker_batch),
        auto_micro_batch_size=training.micro_batch_size == "auto",
        learning_rate=training.learning_rate,
        schedule=training.schedule.name,
        warmup_steps=training.schedule.warmup_steps,
        decay_steps=training.schedule.decay_steps,
        final_learning_rate_fraction=training.schedule.final_learning_rate_fraction,
        optimizer=training.optimizer.name,
        weight_decay=(0.1 if isinstance(job, PretrainJob) else 0.0) if weight_decay is None else weight_decay,
        beta1=training.optimizer.beta1,
        beta2=training.optimizer.beta2,
        epsilon=training.optimizer.epsilon,
        max_grad_norm=training.max_grad_norm,
        precision=precision,
        packing=packs_rows(job),
        compile=on_gpu if training.compile is None else training.compile,
        activation_checkpointing=training.activation_checkpointing,
        seed=training.seed,
    )


def _rows_of_a_pass(job: Job, worker_batch: int) -> int:
    given = job.spec.training.micro_batch_size
    if isinstance(given, int):
        return given
    if given == "auto" or facts_of(job).compares_rows:
        return worker_batch
    return micro_batch_size(worker_batch, job.spec.training.sequence_length * facts_of(job).sequences_per_row)


def micro_batch_size(worker_batch: int, sequence_length: int) -> int:
    """The largest divisor of a worker's rows that keeps one pass within `MICRO_BATCH_TOKENS`."""
    return largest_divisor(worker_batch, max(1, MICRO_BATCH_TOKENS // sequence_length))


def largest_divisor(rows: int, most: int) -> int:
    """The largest number up to `most`, which is at least 1, of which `rows` are a multiple."""
    return max(size for size in range(1, min(rows, most) + 1) if rows % size == 0)


def resolve_workers(compute: Compute) -> RunWorkers:
    """The processes of a job; those that do not shard replicate."""
    resources, shard = compute.per_worker, compute.shard_size()
    return RunWorkers(
        num_workers=compute.workers,
        elastic=compute.elastic,
        shard=shard,
        replicate=compute.data_size() // shard,
        tensor=compute.workers // compute.data_size(),
        gpus=resources.gpus,
        cpus=parse_quantity(resources.cpus),
        memory_bytes=int(parse_quantity(resources.memory)) if resources.memory is not None else None,
    )


def _resolve_checkpoint(job: Job, settings: ResolveSettings) -> RunCheckpoint:
    checkpoint = job.spec.checkpoint
    root = mounted(checkpoint.uri, settings.volume_root) if checkpoint.uri else f"file://{settings.checkpoint_root}"
    return RunCheckpoint(
        uri=f"{root.rstrip('/')}/{settings.uid}",
        every_steps=checkpoint.every_steps,
        keep=checkpoint.keep,
        resume_from=mounted(checkpoint.resume_from, settings.volume_root) if checkpoint.resume_from else None,
    )


def _resolve_tracking(job: Job, settings: ResolveSettings) -> RunTracking:
    tracking = job.spec.tracking
    return RunTracking(
        uri=settings.tracking_uri,
        experiment=f"{settings.registry_prefix}{tracking.experiment or job.spec.output.model}",
        run_name=job.metadata.name,
        run_id=settings.run_id,
        secret=tracking.secret_ref.name if tracking.secret_ref else settings.tracking_secret or None,
        tags={**settings.tags, UID: settings.uid, KIND: job.kind},
    )


def _resolve_evaluation(job: Job, settings: ResolveSettings, versions: Mapping[str, str]) -> RunEvaluation:
    evaluation = job.spec.evaluation
    gate = tuple(
        rule.model_copy(update={"better_than": _resolve_model_uri(rule.better_than, settings, versions)})
        if rule.better_than and scheme_of(rule.better_than) == "models"
        else rule
        for rule in evaluation.gate or ()
    )
    return RunEvaluation(every_steps=evaluation.every_steps, metrics=metrics_of(job), gate=gate)
