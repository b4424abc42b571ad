"""From a job's MLflow run to the parts of its status: progress, checkpoint, evaluation and model.

Keys of the metrics are those that plinth_workloads/train/loop.py logs.
"""

import math
from datetime import datetime
from typing import Literal, cast

from plinth_api.run_tags import (
    CHECKPOINT_STEP,
    CHECKPOINT_URI,
    GATE,
    METRIC_PREFIX,
    MODEL_NAME,
    MODEL_VERSION,
    START_STEP,
    TOTAL_STEPS,
    TRAINING_SINCE,
)
from plinth_api.status import CheckpointStatus, EvaluationStatus, ModelStatus, Progress
from plinth_operator.facts import RunFacts

_MOST_METRICS = 64


def progress_from_run(run: RunFacts, *, now: datetime) -> Progress | None:
    """How far the training is; None where the run has neither a step nor the number of all steps yet.

    Args:
        run: The job's run.
        now: The time, where the run does not say when it was read.
    """
    total = _whole(run.tags.get(TOTAL_STEPS))
    start = _whole(run.tags.get(START_STEP)) or 0
    if run.step is None and total is None:
        return None
    step = run.step if run.step is not None else start
    read_at = run.read_at or now
    percent = min(100, 100 * step // total) if total else None
    left = _seconds_left(run, step, start, total)
    return Progress(
        steps=f"{step}/{total}" if total else str(step),
        percentage=f"{percent}%" if percent is not None else None,
        eta=duration(left) if left is not None else None,
        step=step,
        total_steps=total,
        percent=percent,
        eta_seconds=left,
        loss=_short(run, "train/loss"),
        learning_rate=_short(run, "train/lr"),
        tokens_per_second=_count(run, "train/tokens_per_sec"),
        tokens=_count(run, "train/tokens"),
        updated_at=read_at.replace(microsecond=0),
    )


def duration(seconds: int) -> str:
    """A time for people: 45s, 17m, 2h5m, 3d4h."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60}m"
    return f"{minutes}m" if minutes else f"{seconds}s"


def checkpoint_from_run(run: RunFacts) -> CheckpointStatus | None:
    """The newest complete checkpoint, None before the first."""
    step, uri = _whole(run.tags.get(CHECKPOINT_STEP)), run.tags.get(CHECKPOINT_URI)
    if step is None or not uri:
        return None
    return CheckpointStatus(step=step, uri=uri, time=run.saved_at if run.saved_step == step else None)


def training_since(run: RunFacts) -> datetime | None:
    """When the newest attempt's training began, None where it has not said so."""
    try:
        since = datetime.fromisoformat(run.tags.get(TRAINING_SINCE, ""))
    except ValueError:
        return None
    return since if since.tzinfo is not None else None


def evaluation_from_run(run: RunFacts) -> EvaluationStatus | None:
    """What the final evaluation found, None before it."""
    metrics = {
        name.removeprefix(METRIC_PREFIX): value
        for name, tag in sorted(run.tags.items())
        if name.startswith(METRIC_PREFIX) and (value := _number(tag)) is not None
    }
    verdict = run.tags.get(GATE)
    if not metrics and not verdict:
        return None
    gate = (
        cast(Literal["Passed", "Failed", "NotConfigured"], verdict)
        if verdict in ("Passed", "Failed", "NotConfigured")
        else None
    )
    return EvaluationStatus(metrics=dict(list(metrics.items())[:_MOST_METRICS]), gate=gate)


def model_from_run(run: RunFacts) -> ModelStatus | None:
    """The registered version, None before there is one."""
    name, version = run.tags.get(MODEL_NAME), run.tags.get(MODEL_VERSION)
    return ModelStatus(name=name, version=version, uri=f"models:/{name}/{version}") if name and version else None


def _seconds_left(run: RunFacts, step: int, start: int, total: int | None) -> int | None:
    """At the pace of the steps since training began in this attempt; None where there is no such step.

    Both times are the workload's: what came before the first step does not count, nor does a clock of another machine.
    """
    since = training_since(run)
    if total is None or step <= start or since is None or run.step_at is None or run.step_at <= since:
        return None
    return max(0, round((total - step) * (run.step_at - since).total_seconds() / (step - start)))


def _short(run: RunFacts, metric: str) -> float | None:
    """The metric at five significant digits: kubectl's columns print a number with all that it has."""
    value = run.metrics.get(metric)
    return float(f"{value:.5g}") if value is not None else None


def _count(run: RunFacts, metric: str) -> int | None:
    value = run.metrics.get(metric)
    return round(value) if value is not None and math.isfinite(value) and value >= 0 else None


def _whole(tag: str | None) -> int | None:
    return int(tag) if tag and tag.isascii() and tag.isdigit() else None


def _number(tag: str) -> float | None:
    try:
        value = float(tag)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
