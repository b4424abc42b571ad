"""How the live attempt of a job has ended, or must be ended. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from plinth_api.run_tags import FAILURE_MESSAGE, GATE, PHASE
from plinth_api.status import Attempt
from plinth_operator.facts import ObjectFacts, PodFacts, RayClusterFacts, RayJobFacts, RunFacts
from plinth_operator.plan.attempts import (
    PREEMPTED,
    SPEC_CHANGED,
    SUCCEEDED,
    SUSPENDED,
    is_over,
    is_preempted_by_queue,
)
from plinth_operator.plan.look import Look
from plinth_operator.status.causes import failure_cause, lost_head_cause, stopped_cause, waiting_cause
from plinth_operator.status.jobs import seconds_held
from plinth_operator.status.progress import training_since
from plinth_operator.status.reasons import Cause


@dataclass(frozen=True, slots=True)
class End:
    """The end of an attempt.

    Attributes:
        outcome: As the attempt's entry in the status says it.
        at: When.
        cause: Why, for people.
        deletions: What must be deleted before the end is told.
        look_again: RayJobs that go after the end was told, if they are still as they were seen: one that is gone
            without a word was deleted by somebody else.
        look_at_pods: Whether it follows from pods that are not seen.
        wait_for_record: Whether MLflow must say more before the end is known.
    """

    outcome: str
    at: datetime
    cause: Cause | None = None
    deletions: Sequence[ObjectFacts] = ()
    look_again: Sequence[RayJobFacts] = ()
    look_at_pods: bool = False
    wait_for_record: bool = False


def end_of(look: Look, live: Attempt, attempts: Sequence[Attempt]) -> End | None:
    """How the attempt `live`, the last of `attempts`, ends now; None where it goes on."""
    job, seen, now = look.job, look.seen, look.now
    ray_job = look.ray_job_of(live)
    if job.spec.suspend and (ray_job is None or ray_job.deleting):
        return End(SUSPENDED, now)
    if ray_job is None or ray_job.deleting:
        message = f"the RayJob {live.ray_job} was deleted while it ran; the next attempt goes on from its checkpoint"
        return End("RayJobDeleted", now, Cause("RayJobDeleted", message))
    pods, clusters = look.around(ray_job)
    if is_over(ray_job) and not _is_refused_for_an_older_spec(look, ray_job):
        return _end_of_ray_job(look, ray_job, pods, clusters)
    if job.spec.suspend:
        return End(SUSPENDED, now, deletions=[ray_job])
    limit = job.spec.active_deadline_seconds
    if limit is not None and seconds_held(attempts, now) > limit:
        message = f"activeDeadlineSeconds: all attempts together have taken {limit} s; raise it and apply again"
        return End("DeadlineExceeded", now, Cause("DeadlineExceeded", message), look_again=[ray_job])
    if look.queued and is_preempted_by_queue(live, ray_job):
        cause = waiting_cause(pods, clusters, seen.workloads) or Cause(
            "WaitingForQuota", "Kueue took the machines back"
        )
        return End(PREEMPTED, now, cause)
    if look.has_drifted(ray_job) and not _has_run(live, ray_job, seen.run):
        message = f"the spec was changed before attempt {live.number} had run; the next attempt has the new one"
        return End(SPEC_CHANGED, now, Cause(SPEC_CHANGED, message), look_again=[ray_job])
    lost = lost_head_cause(ray_job, pods)
    return End(lost.reason, now, lost, look_again=[ray_job], look_at_pods=True) if lost else None


def _is_refused_for_an_older_spec(look: Look, ray_job: RayJobFacts) -> bool:
    return ray_job.deployment_status == "ValidationFailed" and look.has_drifted(ray_job)


def _has_run(live: Attempt, ray_job: RayJobFacts, run: RunFacts | None) -> bool:
    """Whether the program of an attempt has begun: Ray says so, or its run does, where KubeRay cannot ask Ray."""
    since = training_since(run) if run is not None else None
    told = since is not None and live.started_at is not None and since >= live.started_at
    return told or ray_job.job_status not in ("", "PENDING")


def _end_of_ray_job(
    look: Look, ray_job: RayJobFacts, pods: Sequence[PodFacts], clusters: Sequence[RayClusterFacts]
) -> End:
    seen, at = look.seen, ray_job.ended_at or look.now
    succeeded = ray_job.deployment_status == "Complete" and ray_job.job_status == "SUCCEEDED"
    if not succeeded:
        cause = failure_cause(ray_job, pods, clusters, seen.run, look.lost_pod_cause(pods))
        return End(cause.reason, at, cause)
    record = seen.run
    if record is not None and record.tags.get(PHASE) == "stopped" and not _is_stale(record, ray_job):
        # Ray knows no other end of a program that was asked to save and stop, and has.
        cause = stopped_cause(ray_job, look.lost_pod_cause(pods))
        return End(cause.reason, at, cause)
    if record is None or record.status == "RUNNING" or _is_stale(record, ray_job):
        missing = Cause("TrackingUnavailable", seen.tracking_error) if seen.tracking_error else None
        return End(SUCCEEDED, at, look.lost_pod_cause(pods) or missing, wait_for_record=True)
    if record.tags.get(GATE) == "Failed":
        message = record.tags.get(FAILURE_MESSAGE) or "the model does not meet evaluation.gate; its alias has not moved"
        return End("GateFailed", at, Cause("GateFailed", message))
    return End(SUCCEEDED, at)


def _is_stale(record: RunFacts, ray_job: RayJobFacts) -> bool:
    """Whether MLflow may have more to say of the end than was read of it."""
    return record.read_at is None or (ray_job.ended_at is not None and record.read_at < ray_job.ended_at)
