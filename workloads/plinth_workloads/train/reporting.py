"""Who hears of a run's steps: the progress file that a runner follows, and the MLflow run."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plinth_api.run_tags import (
    CHECKPOINT_STEP,
    CHECKPOINT_URI,
    FAILURE_MESSAGE,
    FAILURE_REASON,
    MAX_MESSAGE_LENGTH,
    PHASE,
    ROLLBACKS,
    Phase,
)
from plinth_workloads.errors import UserError
from plinth_workloads.tracking import Tracker
from plinth_workloads.train.checkpoint import Checkpoint, SavedCheckpoint
from plinth_workloads.train.progress import ProgressLog, read_progress
from plinth_workloads.train.rollback import Rollback

logger = logging.getLogger(__name__)

Metrics = Mapping[str, float]


class ProgressReporter:
    """Writes steps, evaluations and checkpoints to the progress file."""

    def __init__(self, log: ProgressLog) -> None:
        self._log = log

    def on_step(self, step: int, metrics: Metrics) -> None:
        """A step's metrics are known."""
        self._log.write(
            "step",
            step=step,
            loss=metrics["train/loss"],
            learningRate=metrics["train/lr"],
            tokensPerSecond=metrics["train/tokens_per_sec"],
            tokens=int(metrics["train/tokens"]),
        )

    def on_evaluation(self, step: int, metrics: Metrics) -> None:
        """The model was measured."""
        self._log.write("evaluation", step=step, metrics=dict(metrics))

    def on_checkpoint(self, checkpoint: SavedCheckpoint) -> None:
        """A checkpoint is complete."""
        self._log.write(
            "checkpoint",
            step=checkpoint.step,
            uri=checkpoint.uri,
            stallSeconds=round(checkpoint.stall_seconds, 4),
            seconds=round(checkpoint.seconds, 4),
        )

    def on_rollback(self, rollbacks: Sequence[Rollback]) -> None:
        """The run has gone back to a checkpoint."""
        last = rollbacks[-1]
        self._log.write("rollback", step=last.step, toStep=last.to_step, skippedSteps=last.skipped_steps)


class TrackingReporter:
    """Sends steps, evaluations and checkpoints to the MLflow run."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def on_step(self, step: int, metrics: Metrics) -> None:
        """A step's metrics are known."""
        self._tracker.log_metrics(step, metrics)

    def on_evaluation(self, step: int, metrics: Metrics) -> None:
        """The model was measured."""
        self._tracker.log_metrics(step, {f"val/{name}": value for name, value in metrics.items()})

    def on_checkpoint(self, checkpoint: SavedCheckpoint) -> None:
        """A checkpoint is complete."""
        self._tracker.log_metrics(
            checkpoint.step,
            {
                "train/checkpoint_step": float(checkpoint.step),
                "train/checkpoint_stall_seconds": checkpoint.stall_seconds,
                "train/checkpoint_seconds": checkpoint.seconds,
            },
        )
        self._tracker.log_tags(checkpoint_tags(checkpoint))

    def on_rollback(self, rollbacks: Sequence[Rollback]) -> None:
        """The run has gone back to a checkpoint."""
        self._tracker.log_metrics(rollbacks[-1].step, {"train/rollbacks": float(len(rollbacks))})
        ways = " ".join(f"{rollback.step}->{rollback.to_step}" for rollback in rollbacks)
        self._tracker.log_tags({ROLLBACKS: ways[-MAX_MESSAGE_LENGTH:]})


def publish_phase(tracker: Tracker | None, phase: Phase, tags: Mapping[str, str] | None = None) -> None:
    """Tell the operator where the run stands, with other tags of the same moment."""
    if tracker is not None:
        tracker.log_tags({PHASE: phase, **(tags or {})})


def publish_failure(tracker: Tracker | None, failure: UserError) -> None:
    """Tell the operator why the run ends."""
    message = failure.message[:MAX_MESSAGE_LENGTH]
    publish_phase(tracker, "failed", {FAILURE_REASON: failure.reason, FAILURE_MESSAGE: message})


def end_as_failed(tracker: Tracker | None, failure: UserError) -> None:
    """Tell why the run ends, and end it; for a thread that nobody waits for longer than he wants to."""
    if tracker is None:
        return
    publish_failure(tracker, failure)
    try:
        tracker.close("FAILED")
    except UserError as error:
        logger.warning("the failure is not told to MLflow: %s", error)


def close_reporting(tracker: Tracker | None, log: ProgressLog | None, status: str) -> None:
    """End the MLflow run with a status of its own (`Tracker.close`), and close the progress file."""
    try:
        if tracker is not None:
            tracker.close(status)
    finally:
        if log is not None:
            log.close()


def checkpoint_tags(checkpoint: Checkpoint) -> dict[str, str]:
    """Tags of the run that say which checkpoint is the newest."""
    return {CHECKPOINT_STEP: str(checkpoint.step), CHECKPOINT_URI: checkpoint.uri}


def loss_history(folder: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Training and validation loss by step, over all attempts; a step done twice counts as done last."""
    training: dict[int, float] = {}
    validation: dict[int, float] = {}
    for event, _ in read_progress(folder):
        if event["event"] == "step" and event["loss"] is not None:
            training[event["step"]] = event["loss"]
        elif event["event"] == "evaluation" and "loss" in event["metrics"]:
            validation[event["step"]] = event["metrics"]["loss"]
    return sorted(training.items()), sorted(validation.items())


def flat_parameters(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, as MLflow's parameters are."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if value and isinstance(value, dict):
            flat |= flat_parameters(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = (
                json.dumps(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            )
    return flat
