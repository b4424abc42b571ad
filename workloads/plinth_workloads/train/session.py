"""One run from its document to a registered model: prepare, resume, train, evaluate, register.

Every process of the run executes this; what only one may do, the first does.
"""

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from plinth_api import run_tags
from plinth_api.objective_rules import FACTS
from plinth_api.run import TrainRun
from plinth_workloads.data.loader import BatchLoader, evaluation_batches
from plinth_workloads.data.prefetch import PrefetchingLoader
from plinth_workloads.data.prepare import PreparedData, plan_training_epoch, plan_validation, prepare_data
from plinth_workloads.evaluate.curves import draw_loss_curve
from plinth_workloads.evaluate.gate import GateVerdict, decide_gate
from plinth_workloads.evaluate.metrics import measure
from plinth_workloads.evaluate.model_card import build_model_card
from plinth_workloads.models.fetch import fetch_model
from plinth_workloads.models.four_bits import num_elements
from plinth_workloads.models.load import load_for_training, load_model
from plinth_workloads.models.virtual_tokens import run_in_rows_for, without_virtual_tokens
from plinth_workloads.objectives.by_name import objective_of
from plinth_workloads.objectives.objective import Objective
from plinth_workloads.tracking import ModelVersion, Tracker, resolve_alias
from plinth_workloads.train.blocks import prepare_blocks
from plinth_workloads.train.checkpoint import Checkpointer
from plinth_workloads.train.cpu_products import choose_products
from plinth_workloads.train.export import export_model
from plinth_workloads.train.failures import explained
from plinth_workloads.train.fitting import expect_loading, expect_memory, with_fitting_passes
from plinth_workloads.train.loop import Metrics, Reporter, TrainLoop
from plinth_workloads.train.optim import build_optimizers
from plinth_workloads.train.parallel import Workers, join_workers, replicate_loss, shard_model
from plinth_workloads.train.progress import STOP_FILE, ProgressLog
from plinth_workloads.train.pulse import Pulse
from plinth_workloads.train.reference import keep_reference
from plinth_workloads.train.reporting import (
    ProgressReporter,
    TrackingReporter,
    checkpoint_tags,
    close_reporting,
    end_as_failed,
    flat_parameters,
    loss_history,
    publish_failure,
    publish_phase,
)
from plinth_workloads.train.resume import check_stores, checkpoint_folder, object_store, resume_newest
from plinth_workloads.train.session_lock import only_session
from plinth_workloads.train.tensor_parallel import check_split
from plinth_workloads.train.watchdog import watched

_ARTIFACT = "model"


@dataclass(slots=True)
class Session:
    """What the parts of a run share."""

    run: TrainRun
    workers: Workers
    data: PreparedData
    model: Any
    loss: nn.Module
    loop: TrainLoop
    log: ProgressLog | None
    tracker: Tracker | None


def run_training(run: TrainRun) -> Literal["finished", "stopped"]:
    """Train, and register the model when the last step is done.

    Returns:
        "stopped" where somebody asked for it: the state is saved, and the same call goes on from there.

    Raises:
        UserError: With the reason for a failure that has one.
    """
    torch.set_num_threads(max(1, int(run.workers.cpus)))
    with (
        join_workers(run) as workers,
        watched(run, workers.rank, workers.world_size) as watchdog,
        only_session(Path(run.work_dir), is_first=workers.is_first),
    ):
        log = ProgressLog(Path(run.work_dir)) if workers.is_first else None
        tracker = Tracker(run.tracking) if workers.is_first else None
        watchdog.tell = lambda failure: end_as_failed(tracker, failure)
        status = "FAILED"
        try:
            if tracker and log:
                log.write("run", runId=tracker.run_id, experimentId=tracker.experiment_id, runUrl=tracker.run_url)
                tracker.remove_tags((run_tags.FAILURE_REASON, run_tags.FAILURE_MESSAGE))
            publish_phase(tracker, "preparing")
            session = open_session(run, workers, log, tracker, watchdog.pulse)
            outcome = session.loop.train()
            if outcome == "stopped":
                status = "RUNNING"
                publish_phase(tracker, "stopped")
                _write(log, "stopped", step=session.loop.state.step)
            else:
                _conclude(session)
                publish_phase(tracker, "finished")
                status = "FINISHED"
        except BaseException as error:
            watchdog.stop()
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            told = explained(error, run, workers, watchdog.pulse.step)
            publish_failure(tracker, told)
            if told is error or told.reason == "UserCodeError":
                raise
            raise told from error
        finally:
            close_reporting(tracker, log, status)
        return outcome


def open_session(
    run: TrainRun, workers: Workers, log: ProgressLog | None, tracker: Tracker | None, pulse: Pulse | None = None
) -> Session:
    """Everything ready for the next step: data, model, optimizers, and the newest checkpoint in them.

    Args:
        run: The run document.
        workers: This process among the others.
        log: Where progress goes; None in all processes but the first.
        tracker: The MLflow run; None in all processes but the first, and where nothing is to be tracked.
        pulse: Where the loop says that it moves, for whoever watches.

    Raises:
        UserError: With the reason, before any step is trained.
    """
    pulse = pulse or Pulse()
    check_stores(run, workers)
    cache = Path(run.work_dir) / "cache"
    base = run.model.uri or run.model.tokenizer_uri
    base_folder = fetch_model(base, tracking_uri=run.tracking.uri, cache_dir=cache) if base else None
    _write(log, "preparing")
    objective = objective_of(run)
    data = prepare_data(run, base_folder, objective.recipe())
    workers.barrier()
    model = _load(run, workers, data, base_folder if run.model.uri else None, objective)
    loss = objective.loss(model, data.tokenizer)
    choose_products(model, run)
    prepare_blocks(model, run, same_width=objective.recipe().cuts_documents)
    expected = expect_memory(run, workers, model, log)
    sharded = shard_model(loss, run, workers)
    keep_reference(run, loss, data, workers, pulse)
    run = with_fitting_passes(run, workers, data, sharded, expected, log)
    wrapped = replicate_loss(sharded, run, workers)
    loop = _build_loop(run, workers, data, model, loss, wrapped, log, tracker, pulse)
    session = Session(run, workers, data, model, loss, loop, log, tracker)
    resume_newest(run, loop, workers, log)
    if tracker is not None:
        _log_inputs(session, tracker)
    _publish_start(session)
    sizes = {"totalSteps": loop.num_steps, "parameters": _num_parameters(model), "workers": workers.world_size}
    _write(log, "started", step=loop.state.step, **sizes)
    if loop.state.step == 0 and any(rule.better_than == "base" for rule in run.evaluation.gate):
        with without_virtual_tokens(model):
            loop.record_evaluation("base")
    return session


def _load(run: TrainRun, workers: Workers, data: PreparedData, start: Path | None, objective: Objective) -> Any:
    """The model that the run starts from, once it is known to be one that the run can train."""
    expect_loading(run, workers, data.tokenizer, start, objective)
    implied = objective.implied_config(data.tokenizer)
    model = load_for_training(run, data.tokenizer, start, objective.auto_class, implied)
    objective.check(model, data.tokenizer)
    if workers.tensor > 1:
        check_split(model, workers.tensor)
    return model


def _build_loop(
    run: TrainRun,
    workers: Workers,
    data: PreparedData,
    model: nn.Module,
    loss: nn.Module,
    wrapped: nn.Module,
    log: ProgressLog | None,
    tracker: Tracker | None,
    pulse: Pulse,
) -> TrainLoop:
    reporters: list[Reporter] = []
    if log is not None:
        reporters.append(ProgressReporter(log))
    if tracker is not None:
        reporters.append(TrackingReporter(tracker))
    loader = BatchLoader(
        data.training_rows,
        lambda epoch: plan_training_epoch(run, data, epoch),
        global_batch_size=run.training.global_batch_size,
        micro_batch_size=run.training.micro_batch_size,
        rank=workers.data_rank,
        world_size=workers.data_size,
    )
    return TrainLoop(
        run,
        workers=workers,
        model=model,
        loss=wrapped,
        optimizers=build_optimizers(model, run.training),
        loader=PrefetchingLoader(loader, pin_memory=workers.device.type == "cuda"),
        checkpointer=Checkpointer(checkpoint_folder(run), run.checkpoint.keep, workers, object_store(run)),
        evaluate=(lambda: _measure(run, workers, data, loss, pulse)) if data.validation_store is not None else None,
        num_steps=num_steps(run, data),
        fingerprint=data.fingerprint,
        reporters=reporters,
        stop_file=Path(run.work_dir) / STOP_FILE,
        pulse=pulse,
    )


def num_steps(run: TrainRun, data: PreparedData) -> int:
    """Optimizer steps of the whole run; epochs and tokens are rounded up to whole steps."""
    training = run.training
    if training.steps is not None:
        return training.steps
    if training.tokens is not None:
        row = FACTS[run.objective].sequences_per_row * training.sequence_length
        return math.ceil(training.tokens / (training.global_batch_size * row))
    assert training.epochs is not None
    rows, whole = 0.0, math.floor(training.epochs)
    for epoch in range(math.ceil(training.epochs)):
        part = 1.0 if epoch < whole else training.epochs - whole
        rows += part * plan_training_epoch(run, data, epoch).num_rows
    return max(1, math.ceil(rows / training.global_batch_size))


def _measure(run: TrainRun, workers: Workers, data: PreparedData, loss: nn.Module, pulse: Pulse) -> Metrics:
    batches = evaluation_batches(
        data.validation_rows,
        plan_validation(data),
        batch_size=run.training.micro_batch_size,
        rank=workers.data_rank,
        world_size=workers.data_size,
    )
    measured = measure(run, objective_of(run), loss, pulse.each("evaluating", batches), workers)
    return {name: measured[name] for name in run.evaluation.metrics}


def _log_inputs(session: Session, tracker: Tracker) -> None:
    run, data = session.run, session.data
    document = Path(run.work_dir) / "run.json"
    tracker.log_params(
        {
            **flat_parameters(
                run.model_dump(mode="json", by_alias=True, include={"model", "method", "data", "training", "workers"})
            ),
            "data.fingerprint": data.fingerprint,
            "data.trainDocuments": len(data.train_documents),
            "data.trainTokens": int(data.store.lengths[data.train_documents].sum()),
            "data.validationDocuments": len(data.validation_documents),
            "model.parameters": _num_parameters(session.model),
            "training.numSteps": session.loop.num_steps,
        }
    )
    if document.exists():
        tracker.log_artifact(document)


def _conclude(session: Session) -> None:
    """Decide the gate, write the model, register it and move the alias."""
    run = session.run
    publish_phase(session.tracker, "evaluating")
    _write(session.log, "evaluating")
    metrics = session.loop.state.evaluations.get(str(session.loop.num_steps), {})
    verdict = decide_gate(run.evaluation.gate, metrics, _references(session))
    folder = Path(run.work_dir) / _ARTIFACT
    export_model(run, session.model, session.data.tokenizer, session.workers, folder)
    if session.tracker is not None:
        version = _register(session, session.tracker, folder, metrics, verdict)
        _write(
            session.log,
            "model",
            name=version.name,
            version=version.version,
            uri=version.uri,
            metrics=dict(metrics),
            gate=_gate_state(run, verdict),
            findings=list(verdict.findings),
            aliasMoved=bool(run.output.alias) and verdict.passed,
        )
    session.workers.barrier()


def _gate_state(run: TrainRun, verdict: GateVerdict) -> str:
    if not run.evaluation.gate:
        return "NotConfigured"
    return "Passed" if verdict.passed else "Failed"


def _references(session: Session) -> dict[str, Metrics | None]:
    """What the gate compares with, measured on the same examples."""
    references: dict[str, Metrics | None] = {}
    for rule in session.run.evaluation.gate:
        if rule.better_than is None or rule.better_than in references:
            continue
        if rule.better_than == "base":
            references["base"] = session.loop.state.evaluations["base"]
        else:
            references[rule.better_than] = _measure_registered(session, rule.better_than)
    return references


def _measure_registered(session: Session, reference: str) -> Metrics | None:
    run, workers = session.run, session.workers
    uri = reference
    if reference == "champion":
        champion = resolve_alias(run.tracking.uri, f"models:/{run.output.model}@{run.output.alias}")
        if champion is None:
            return None
        uri = champion.uri
    cache = Path(run.work_dir) / "cache"
    folder = fetch_model(uri, tracking_uri=run.tracking.uri, cache_dir=cache)
    objective, tokenizer = objective_of(run), session.data.tokenizer
    model = load_model(
        folder,
        uri,
        auto_class=objective.auto_class,
        implied=objective.implied_config(tokenizer),
        tracking_uri=run.tracking.uri,
        cache_dir=cache,
    )
    loss = objective.loss(model.to(workers.device), tokenizer).eval()
    rows = objective_of(run_in_rows_for(model, run)).recipe()
    return _measure(run, workers, replace(session.data, recipe=rows), loss, Pulse())


def _register(session: Session, tracker: Tracker, folder: Path, metrics: Metrics, verdict: GateVerdict) -> ModelVersion:
    run = session.run
    facts = {
        "parameters": _num_parameters(session.model),
        "tokens": session.loop.state.tokens,
        "data fingerprint": session.data.fingerprint,
        "MLflow run": tracker.run_id,
    }
    (folder / "README.md").write_text(build_model_card(run, metrics, verdict, facts))
    tracker.log_folder(folder, _ARTIFACT)
    training, validation = loss_history(Path(run.work_dir))
    if training:
        picture = Path(run.work_dir) / "loss.png"
        draw_loss_curve(picture, run.name, training, validation)
        tracker.log_artifact(picture)
    findings = {
        run_tags.GATE: _gate_state(run, verdict),
        **{run_tags.metric_tag(name): f"{value:.6g}" for name, value in metrics.items()},
    }
    tags = {
        **run.tracking.tags,
        "plinth.baseModel": run.model.uri or run.model.architecture or "",
        "plinth.dataFingerprint": session.data.fingerprint,
        "plinth.method": run.method.name,
        **findings,
    }
    version = tracker.register(run.output.model, _ARTIFACT, tags)
    if run.output.alias and verdict.passed:
        tracker.set_alias(version, run.output.alias)
    tracker.log_tags({run_tags.MODEL_NAME: version.name, run_tags.MODEL_VERSION: version.version, **findings})
    return version


def _publish_start(session: Session) -> None:
    """Say where this attempt starts, and which checkpoint there is: an attempt that was killed may not have said it."""
    loop, checkpoint = session.loop, session.loop.newest_checkpoint()
    steps = {
        run_tags.TOTAL_STEPS: str(loop.num_steps),
        run_tags.START_STEP: str(loop.state.step),
        run_tags.TRAINING_SINCE: datetime.now(UTC).isoformat(timespec="seconds"),
    }
    publish_phase(session.tracker, "training", {**steps, **(checkpoint_tags(checkpoint) if checkpoint else {})})


def _write(log: ProgressLog | None, event: str, **values: Any) -> None:
    if log is not None:
        log.write(event, **values)


def _num_parameters(model: nn.Module) -> int:
    return sum(num_elements(parameter) for parameter in model.parameters())
