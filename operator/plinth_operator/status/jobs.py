"""The status of a job in wire form: one phase, one reason, conditions, progress, attempts and usage. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from plinth_api.base import Condition
from plinth_api.run_tags import GATE
from plinth_api.status import Attempt, JobPhase, JobStatus, TrackingStatus, Usage
from plinth_operator.facts import RunFacts
from plinth_operator.status.conditions import MOST_CHARACTERS, kstatus_conditions, set_condition
from plinth_operator.status.progress import (
    checkpoint_from_run,
    evaluation_from_run,
    model_from_run,
    progress_from_run,
)
from plinth_operator.status.reasons import Cause


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a job stands.

    Attributes:
        phase: The phase to show.
        cause: Why it is no further; None where all is as it should be.
        accepted: Whether the spec can be carried out.
        drifted_attempt: The attempt that runs with an older spec than the resource has now.
    """

    phase: JobPhase
    cause: Cause | None
    accepted: bool = True
    drifted_attempt: int | None = None


def build_job_status(
    old: JobStatus,
    verdict: Verdict,
    *,
    generation: int,
    attempts: Sequence[Attempt],
    run: RunFacts | None,
    gpus: int,
    page: str = "",
    now: datetime,
) -> dict[str, Any]:
    """The new status; what cannot be derived again is carried over from the old one.

    Args:
        old: The status as it stands.
        verdict: Where the job stands.
        generation: Generation of the spec that this speaks of.
        attempts: The attempts so far, oldest first.
        run: What MLflow says.
        gpus: GPUs that the job holds while an attempt runs.
        page: MLflow's address for browsers.
        now: The time.
    """
    cause = verdict.cause
    status = JobStatus(
        observed_generation=generation,
        phase=verdict.phase,
        reason=cause.reason if cause else "",
        message=cause.message[:MOST_CHARACTERS] if cause else "",
        conditions=_conditions(old, verdict, generation, attempts, run, now),
        progress=(progress_from_run(run, now=now) if run else None) or old.progress,
        checkpoint=(checkpoint_from_run(run) if run else None) or old.checkpoint,
        attempts=tuple(attempts),
        evaluation=(evaluation_from_run(run) if run else None) or old.evaluation,
        model=(model_from_run(run) if run else None) or old.model,
        tracking=_tracking(run, page) or old.tracking,
        usage=_usage(gpus, attempts, now),
    )
    return status.to_wire()


def _tracking(run: RunFacts | None, page: str) -> TrackingStatus | None:
    if run is None:
        return None
    url = f"{page.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}" if page else None
    return TrackingStatus(experiment_id=run.experiment_id, run_id=run.run_id, run_url=url)


def _usage(gpus: int, attempts: Sequence[Attempt], now: datetime) -> Usage:
    held = seconds_held(attempts, now)
    wasted = sum(seconds_held([attempt], now) * _lost_share(attempt) for attempt in attempts if attempt.finished_at)
    return Usage(gpus=gpus, gpu_seconds=round(gpus * held), wasted_gpu_seconds=round(gpus * wasted))


def seconds_held(attempts: Sequence[Attempt], now: datetime) -> float:
    """The seconds that the attempts have held their machines, in all."""
    return sum(
        max(0.0, ((attempt.finished_at or now) - attempt.started_at).total_seconds())
        for attempt in attempts
        if attempt.started_at is not None
    )


def _lost_share(attempt: Attempt) -> float:
    """The part of an attempt that went into steps which no checkpoint holds."""
    if not attempt.lost_steps or not attempt.last_step:
        return 0.0
    return min(1.0, attempt.lost_steps / max(1, attempt.last_step - (attempt.from_step or 0)))


def _conditions(
    old: JobStatus,
    verdict: Verdict,
    generation: int,
    attempts: Sequence[Attempt],
    run: RunFacts | None,
    now: datetime,
) -> tuple[Condition, ...]:
    phase, cause = verdict.phase, verdict.cause
    reason, message = (cause.reason, cause.message) if cause else (phase, "")
    facts: list[tuple[str, bool, str, str]] = []
    if not verdict.accepted:
        facts.append(("Accepted", False, reason, message))
    elif verdict.drifted_attempt is not None:
        drift = (
            f"the spec has changed; attempt {verdict.drifted_attempt} goes on with the one that it started from: "
            "suspend and resume the job, and the next attempt has the new one"
        )
        facts.append(("Accepted", True, "SpecChanged", drift))
    else:
        facts.append(("Accepted", True, "Accepted", "the spec can be carried out"))
    admitted = any(attempt.started_at is not None for attempt in attempts)
    facts.append(("Admitted", admitted and phase != "Queued", reason, message if phase == "Queued" else ""))
    tracked = run is not None or old.tracking is not None
    facts.append(("TrackingReady", tracked, "RunCreated" if tracked else reason, "" if tracked else message))
    facts.append(("Running", phase in ("Training", "Evaluating"), reason, message))
    evaluated = (run is not None and GATE in run.tags) or old.evaluation is not None
    facts.append(("Evaluated", evaluated, reason, ""))
    facts.append(("Suspended", phase == "Suspended", reason, message))
    facts.append(("Complete", phase == "Succeeded", reason, message))
    facts.append(("Failed", phase == "Failed", reason, message))
    conditions = old.conditions
    for kind, holds, why, words in facts:
        conditions = set_condition(
            conditions, kind, "True" if holds else "False", why, words, now=now, generation=generation
        )
    return kstatus_conditions(conditions, phase, reason, message, now=now, generation=generation)
