"""The attempts of a job: from what status remembers and the RayJobs that exist to a list, and what it says is next."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from plinth_api.status import Attempt, CheckpointStatus
from plinth_operator.facts import RayJobFacts, RunFacts
from plinth_operator.status.reasons import REASONS, Retry, retry_of

SUCCEEDED = "Succeeded"
SUSPENDED = "Suspended"
PREEMPTED = "Preempted"
SPEC_CHANGED = "SpecChanged"

MAX_REMEMBERED = 100
"""Older attempts leave the status: it must stay far below the size that the API server takes."""

_FIRST_BACKOFF = timedelta(seconds=10)
_LAST_BACKOFF = timedelta(minutes=6)


def known_attempts(remembered: Sequence[Attempt], ray_jobs: Sequence[RayJobFacts], *, queued: bool) -> list[Attempt]:
    """The attempts by number: those in status, and one for each RayJob that status does not know yet.

    Args:
        remembered: status.attempts.
        ray_jobs: The RayJobs of the resource.
        queued: Whether Kueue decides when a RayJob starts; it may stop one and start it again, which is a new attempt.
    """
    attempts = list(remembered)
    for ray_job in ray_jobs:
        ours = [attempt for attempt in attempts if attempt.ray_job == ray_job.name]
        started = _started_at(ray_job) if queued else ray_job.created_at
        if not ours and ray_job.attempt > (attempts[-1].number if attempts else 0):
            attempts.append(Attempt(number=ray_job.attempt, ray_job=ray_job.name, started_at=started))
        elif ours and ours[-1] is attempts[-1] and queued and started is not None:
            if ours[-1].started_at is None:
                attempts[-1] = ours[-1].model_copy(update={"started_at": started})
            elif ours[-1].finished_at is not None and started > ours[-1].started_at and not is_over(ray_job):
                attempts.append(Attempt(number=ours[-1].number + 1, ray_job=ray_job.name, started_at=started))
    return attempts


def _started_at(ray_job: RayJobFacts) -> datetime | None:
    """When Kueue last let a RayJob start, None while it does not.

    KubeRay notes a start for a RayJob that is created held, and keeps it until it initializes the RayJob anew.
    """
    return None if _is_held(ray_job) or ray_job.deployment_status == "" else ray_job.started_at


def is_over(ray_job: RayJobFacts) -> bool:
    """Whether KubeRay does nothing more for this RayJob."""
    return ray_job.deployment_status in ("Complete", "Failed", "ValidationFailed")


def is_waiting_in_queue(attempt: Attempt, ray_jobs: Sequence[RayJobFacts]) -> bool:
    """Whether Kueue, which has ended an attempt, will start its RayJob again, or is about to.

    KubeRay takes a RayJob that is resumed back to a deployment status of nothing before it initializes it anew.
    """
    return attempt.outcome == PREEMPTED and any(
        ray_job.name == attempt.ray_job
        and (_is_held(ray_job) or ray_job.deployment_status == "")
        and not is_over(ray_job)
        and not ray_job.deleting
        for ray_job in ray_jobs
    )


def is_preempted_by_queue(attempt: Attempt, ray_job: RayJobFacts) -> bool:
    """Whether Kueue has taken the machines of an attempt that had started."""
    return _is_held(ray_job) and attempt.started_at is not None and attempt.finished_at is None


def _is_held(ray_job: RayJobFacts) -> bool:
    return ray_job.suspended or ray_job.deployment_status in ("Suspending", "Suspended")


def finished(
    attempt: Attempt, outcome: str, at: datetime, run: RunFacts | None, checkpoint: CheckpointStatus | None
) -> Attempt:
    """The attempt with its end: what it reached, and what of that no checkpoint holds.

    The steps of a run are those of all attempts, so they say nothing of one that never ran.
    """
    last = run.step if run and outcome != SPEC_CHANGED else None
    saved = checkpoint.step if checkpoint else 0
    lost = max(0, last - saved) if last is not None and outcome not in (SUCCEEDED, SUSPENDED) else 0
    return attempt.model_copy(
        update={
            "finished_at": at,
            "outcome": outcome,
            "last_step": last,
            "lost_steps": lost if last is not None else None,
        }
    )


def with_start(attempts: Sequence[Attempt], from_step: int, last_step: int | None) -> list[Attempt]:
    """The attempts where the last one has begun to train: with that, it is known what the one before it lost.

    Pods that are asked to end save once more, after the end of their attempt was told.
    """
    *earlier, live = attempts
    if earlier and earlier[-1].last_step is not None:
        last = max(earlier[-1].last_step, from_step)
        earlier[-1] = earlier[-1].model_copy(update={"last_step": last, "lost_steps": last - from_step})
    return [*earlier, live.model_copy(update={"from_step": from_step, "last_step": last_step})]


@dataclass(frozen=True, slots=True)
class Next:
    """What follows the attempts so far: start another (at once, or at `at`), nothing more, or the job is done."""

    step: Literal["start", "wait", "fail", "succeed", "run"]
    at: datetime | None = None


def next_step(attempts: Sequence[Attempt], max_restarts: int, now: datetime) -> Next:
    """What to do after the last attempt.

    Failures of the infrastructure count against `max_restarts` and are followed by a wait, which doubles as long as no
    attempt gets further; preemptions and suspensions count nothing; a user's error is final.
    """
    if not attempts:
        return Next("start")
    last = attempts[-1]
    if last.finished_at is None:
        return Next("run")
    outcome = last.outcome or "UserCodeError"
    if outcome == SUCCEEDED:
        return Next("succeed")
    retry = retry_of(outcome)
    if retry is Retry.FREE:
        return Next("start")
    if retry is Retry.FINAL or num_failures(attempts) > max_restarts:
        return Next("fail")
    due = last.finished_at + min(_LAST_BACKOFF, _FIRST_BACKOFF * 2 ** min(_failures_in_a_row(attempts) - 1, 10))
    return Next("start") if now >= due else Next("wait", due)


def num_failures(attempts: Sequence[Attempt]) -> int:
    """The attempts that count against restart.maxRestarts."""
    return sum(_is_failure(attempt) for attempt in attempts)


def _failures_in_a_row(attempts: Sequence[Attempt]) -> int:
    """The failures at the end, back to the last attempt that has saved steps."""
    count = 0
    for attempt in reversed(attempts):
        count += _is_failure(attempt)
        if _has_saved_steps(attempt):
            break
    return count


def _is_failure(attempt: Attempt) -> bool:
    outcome = attempt.outcome
    return outcome is not None and outcome in REASONS and REASONS[outcome].retry is Retry.BUDGET


def _has_saved_steps(attempt: Attempt) -> bool:
    if attempt.from_step is None or attempt.last_step is None:
        return False
    return attempt.last_step - (attempt.lost_steps or 0) > attempt.from_step
