"""What to do about a PretrainJob or FineTuneJob: from the resource and what is observed to writes and a status."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from plinth_api.errors import InvalidSpec, Problem
from plinth_api.model_service import ModelService
from plinth_api.parse import Job, parse_resource
from plinth_api.resolve import referenced_aliases, resolve_train_run
from plinth_api.run_tags import FAILURE_MESSAGE, FAILURE_REASON, GATE, PHASE, START_STEP
from plinth_api.status import Attempt, JobPhase, JobStatus
from plinth_operator.facts import Manifest, ObjectFacts, Observed, PodFacts, RayClusterFacts, RayJobFacts, RunFacts
from plinth_operator.plan.attempts import (
    MAX_REMEMBERED,
    SUCCEEDED,
    SUSPENDED,
    finished,
    is_over,
    is_preempted_by_queue,
    is_waiting_in_queue,
    known_attempts,
    next_step,
)
from plinth_operator.plan.children import job_children
from plinth_operator.plan.existence import missing_cause
from plinth_operator.plan.plan import Plan, RunRequest
from plinth_operator.plan.raycluster import build_ray_cluster_spec
from plinth_operator.plan.rayjob import attempt_spec_hash
from plinth_operator.plan.run_config import resolve_settings_for
from plinth_operator.plan.storage import storage_problems
from plinth_operator.settings import Settings
from plinth_operator.status.causes import failure_cause, lost_head_cause, waiting_cause
from plinth_operator.status.jobs import Verdict, build_job_status, seconds_held
from plinth_operator.status.progress import checkpoint_from_run
from plinth_operator.status.reasons import Cause

_TERMINAL_RUN = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at a job: everything that the steps below decide from."""

    job: Job
    old: JobStatus
    seen: Observed
    settings: Settings
    now: datetime

    @property
    def queued(self) -> bool:
        return bool(self.job.spec.compute.queue_name or self.settings.queue_name)


def plan_job(document: Manifest, seen: Observed, *, settings: Settings, now: datetime) -> Plan:
    """The plan for a job.

    Args:
        document: The resource as JSON types, status included.
        seen: What is known of its surroundings.
        settings: What the platform team has decided.
        now: The time.
    """
    old = JobStatus.model_validate_json(json.dumps(document.get("status") or {}))
    try:
        job = parse_resource({**document, "status": None})
    except InvalidSpec as error:
        return _refused(document, old, seen, error, now)
    assert not isinstance(job, ModelService)
    look = _Look(job, old, seen, settings, now)
    if old.phase in ("Succeeded", "Failed") and old.attempts:
        return _plan_after_end(look)
    has_begun = bool(old.attempts or seen.ray_jobs)
    if not has_begun and (problems := _problems(look)):
        return _refused(document, old, seen, InvalidSpec(*problems), now)
    return _plan_attempts(look)


def _problems(look: _Look) -> tuple[Problem, ...]:
    try:
        resolve_train_run(look.job, resolve_settings_for(look.job, look.settings, None), {})
        build_ray_cluster_spec(look.job, settings=look.settings, attempt=1)
    except InvalidSpec as error:
        return error.problems
    return tuple(storage_problems(look.job, look.seen.claims, look.settings))


def _refused(document: Manifest, old: JobStatus, seen: Observed, error: InvalidSpec, now: datetime) -> Plan:
    """A spec that cannot be carried out: nothing is created; what still runs from an older one is left to end."""
    verdict = Verdict("Failed", Cause("InvalidSpec", str(error)), accepted=False)
    if old.attempts or seen.ray_jobs:
        verdict = replace(verdict, phase=old.phase or "Starting")
    status = build_job_status(
        old,
        verdict,
        generation=document["metadata"]["generation"],
        attempts=old.attempts,
        run=seen.run,
        gpus=(old.usage.gpus if old.usage else None) or 0,
        now=now,
    )
    return Plan(status=status)


def _plan_attempts(look: _Look) -> Plan:
    job, seen = look.job, look.seen
    attempts = known_attempts(look.old.attempts, seen.ray_jobs, queued=look.queued)
    deletions: tuple[ObjectFacts, ...] = ()
    failure: Cause | None = None
    if attempts and attempts[-1].finished_at is None:
        live = attempts[-1]
        ended = _end_of(look, live, attempts)
        if ended is None:
            return _running(look, attempts)
        if ended.wait_for_record:
            waiting = Verdict("Evaluating", ended.cause)
            return replace(_report(look, waiting, attempts), want_read=True, requeue_seconds=2.0)
        failure = ended.cause
        deletions = tuple(ended.deletions)
        checkpoint = checkpoint_from_run(seen.run) if seen.run else None
        attempts[-1] = finished(live, ended.outcome, ended.at, seen.run, checkpoint or look.old.checkpoint)
    if attempts and is_waiting_in_queue(attempts[-1], seen.ray_jobs):
        return _waiting_in_queue(look, attempts)
    following = next_step(attempts, job.spec.restart.max_restarts, look.now)
    if following.step == "succeed":
        return _conclude(look, Verdict("Succeeded", None), attempts, deletions)
    if following.step == "fail" or (attempts and attempts[-1].outcome == "DeadlineExceeded"):
        cause = failure or _remembered_cause(look, attempts[-1])
        return _conclude(look, Verdict("Failed", cause), attempts, deletions)
    if job.spec.suspend:
        return replace(_report(look, Verdict("Suspended", None), attempts), deletions=deletions)
    if following.step == "wait":
        assert following.at is not None
        cause = failure or _remembered_cause(look, attempts[-1])
        text = f"{cause.message}; attempt {attempts[-1].number + 1} starts at {following.at:%H:%M:%S} UTC"
        waiting = Verdict("Pending", Cause(cause.reason, text))
        wait = (following.at - look.now).total_seconds() + 0.5
        return replace(_report(look, waiting, attempts), deletions=deletions, requeue_seconds=wait)
    return replace(_start(look, attempts), deletions=deletions)


@dataclass(frozen=True, slots=True)
class _End:
    """How a live attempt has ended, or must be ended."""

    outcome: str
    at: datetime
    cause: Cause | None = None
    deletions: Sequence[ObjectFacts] = ()
    wait_for_record: bool = False


def _end_of(look: _Look, live: Attempt, attempts: Sequence[Attempt]) -> _End | None:
    job, seen, now = look.job, look.seen, look.now
    ray_job = _ray_job_of(live, seen)
    if job.spec.suspend and (ray_job is None or ray_job.deleting):
        return _End(SUSPENDED, now)
    if ray_job is None or ray_job.deleting:
        message = f"the RayJob {live.ray_job} was deleted while it ran; the next attempt goes on from its checkpoint"
        return _End("RayJobDeleted", now, Cause("RayJobDeleted", message))
    pods, clusters = _of_attempt(ray_job, seen)
    if is_over(ray_job):
        return _end_of_ray_job(look, ray_job, pods, clusters)
    if job.spec.suspend:
        return _End(SUSPENDED, now, deletions=[ray_job])
    limit = job.spec.active_deadline_seconds
    if limit is not None and seconds_held(attempts, now) > limit:
        message = f"activeDeadlineSeconds: all attempts together have taken {limit} s; raise it and apply again"
        return _End("DeadlineExceeded", now, Cause("DeadlineExceeded", message), [ray_job])
    if look.queued and is_preempted_by_queue(live, ray_job):
        cause = waiting_cause(pods, clusters, seen.workloads) or Cause(
            "WaitingForQuota", "Kueue took the machines back"
        )
        return _End("Preempted", now, cause)
    lost = lost_head_cause(ray_job, pods)
    return _End(lost.reason, now, lost, [ray_job]) if lost else None


def _end_of_ray_job(
    look: _Look, ray_job: RayJobFacts, pods: Sequence[PodFacts], clusters: Sequence[RayClusterFacts]
) -> _End:
    seen, at = look.seen, ray_job.ended_at or look.now
    succeeded = ray_job.deployment_status == "Complete" and ray_job.job_status == "SUCCEEDED"
    if not succeeded:
        cause = failure_cause(ray_job, pods, clusters, seen.run)
        return _End(cause.reason, at, cause)
    record = seen.run
    if record is None or record.status == "RUNNING" or _is_stale(record, ray_job):
        missing = Cause("TrackingUnavailable", seen.tracking_error) if seen.tracking_error else None
        return _End(SUCCEEDED, at, missing, wait_for_record=True)
    if record.tags.get(GATE) == "Failed":
        message = record.tags.get(FAILURE_MESSAGE) or "the model does not meet evaluation.gate; its alias has not moved"
        return _End("GateFailed", at, Cause("GateFailed", message))
    return _End(SUCCEEDED, at)


def _waiting_in_queue(look: _Look, attempts: list[Attempt]) -> Plan:
    """Kueue has stopped the RayJob of the last attempt, and will start the same one again."""
    ray_job = _ray_job_of(attempts[-1], look.seen)
    assert ray_job is not None
    if look.job.spec.suspend:
        return replace(_report(look, Verdict("Suspended", None), attempts), deletions=(ray_job,))
    cause = waiting_cause((), (), look.seen.workloads) or Cause("WaitingForQuota", "Kueue took the machines back")
    return _report(look, Verdict("Queued", cause), attempts)


def _is_stale(record: RunFacts, ray_job: RayJobFacts) -> bool:
    """Whether MLflow may have more to say of the end than was read of it."""
    return record.read_at is None or (ray_job.ended_at is not None and record.read_at < ray_job.ended_at)


def _running(look: _Look, attempts: list[Attempt]) -> Plan:
    live = attempts[-1]
    ray_job = _ray_job_of(live, look.seen)
    assert ray_job is not None
    pods, clusters = _of_attempt(ray_job, look.seen)
    cause: Cause | None = waiting_cause(pods, clusters, look.seen.workloads)
    run = look.seen.run
    started = run.tags.get(START_STEP, "") if run else ""
    if started.isdigit():
        attempts[-1] = live.model_copy(update={"from_step": int(started), "last_step": run.step if run else None})
    if look.queued and (ray_job.suspended or ray_job.deployment_status == "Suspended"):
        verdict = Verdict("Queued", cause or Cause("WaitingForQuota", "Kueue has not admitted the job yet"))
    elif ray_job.deployment_status == "Running" and ray_job.job_status == "RUNNING":
        told = run.tags.get(PHASE, "") if run else ""
        stepping = run is not None and run.step is not None
        phase: JobPhase = "Training" if stepping or told == "training" else "Starting"
        verdict = Verdict("Evaluating" if told == "evaluating" else phase, cause)
    else:
        verdict = Verdict("Starting", cause)
    drifted = ray_job.spec_hash not in ("", attempt_spec_hash(look.job))
    plan = _report(look, replace(verdict, drifted_attempt=live.number if drifted else None), attempts)
    limit = look.job.spec.active_deadline_seconds
    if limit is None:
        return plan
    return replace(plan, requeue_seconds=max(1.0, limit - seconds_held(attempts, look.now) + 1))


def _start(look: _Look, attempts: list[Attempt]) -> Plan:
    """The next attempt, unless something that it needs does not exist yet."""
    job, seen, settings = look.job, look.seen, look.settings
    prefix = resolve_settings_for(job, settings, None).registry_prefix
    aliases = referenced_aliases(job, prefix)
    held = _held_back(look, aliases)
    if held is not None:
        wants = tuple(uri for uri in aliases if not seen.versions.get(uri))
        return replace(_report(look, Verdict("Pending", held), attempts), want_versions=wants, requeue_seconds=10.0)
    run_id = seen.run.run_id if seen.run else look.old.tracking.run_id if look.old.tracking else None
    missing = tuple(uri for uri in aliases if uri not in seen.versions)
    if run_id is None or missing:
        cause = Cause("TrackingUnavailable", seen.tracking_error) if seen.tracking_error else None
        request = None if run_id else _run_request(job, settings)
        plan = _report(look, Verdict("Pending", cause), attempts)
        return replace(plan, want_run=request, want_versions=missing)
    number = attempts[-1].number + 1 if attempts else 1
    run = resolve_train_run(job, resolve_settings_for(job, settings, run_id), seen.versions)
    children = job_children(job, run, attempt=number, settings=settings)
    known = {(child.kind, child.name): child.hash for child in seen.children}
    needed = tuple(
        child
        for child in children
        if known.get((child["kind"], child["metadata"]["name"])) is None or child["kind"] == "RayJob"
    )
    return replace(_report(look, Verdict("Starting", None), attempts), children=needed)


def _held_back(look: _Look, aliases: Sequence[str]) -> Cause | None:
    seen = look.seen
    missing = missing_cause(look.job, seen, aliases, seen.versions, look.settings)
    if missing is None and seen.tracking_error and seen.run is None and look.old.tracking is None:
        return Cause("TrackingUnavailable", seen.tracking_error)
    return missing


def _run_request(job: Job, settings: Settings) -> RunRequest:
    document = resolve_train_run(job, resolve_settings_for(job, settings, None), {})
    return RunRequest(document.tracking.experiment, document.tracking.run_name, dict(document.tracking.tags))


def _conclude(look: _Look, verdict: Verdict, attempts: Sequence[Attempt], deletions: tuple[ObjectFacts, ...]) -> Plan:
    plan = replace(_report(look, verdict, attempts), deletions=deletions)
    ttl = look.job.spec.ttl_seconds_after_finished
    return replace(plan, end_run=_wanted_end(look, verdict.phase), requeue_seconds=float(ttl) if ttl else None)


def _wanted_end(look: _Look, phase: str) -> str:
    run = look.seen.run
    if run is None or run.status in _TERMINAL_RUN:
        return ""
    return "FINISHED" if phase == "Succeeded" or run.tags.get(GATE) == "Failed" else "FAILED"


def _plan_after_end(look: _Look) -> Plan:
    """A job that is over stays as it is, whatever becomes of its children; in the end they are deleted."""
    assert look.old.phase is not None
    status = look.old.to_wire()
    plan = Plan(status={**status, "observedGeneration": look.job.metadata.generation})
    plan = replace(plan, end_run=_wanted_end(look, look.old.phase))
    ttl, ended = look.job.spec.ttl_seconds_after_finished, look.old.attempts[-1].finished_at
    if ttl is None or ended is None:
        return plan
    left = ttl - (look.now - ended).total_seconds()
    if left > 0:
        return replace(plan, requeue_seconds=left + 0.5)
    children: tuple[ObjectFacts, ...] = (*look.seen.ray_jobs, *look.seen.children)
    return replace(plan, deletions=tuple(child for child in children if not child.deleting))


def _report(look: _Look, verdict: Verdict, attempts: Sequence[Attempt]) -> Plan:
    compute = look.job.spec.compute
    status = build_job_status(
        look.old,
        verdict,
        generation=look.job.metadata.generation or 1,
        attempts=attempts[-MAX_REMEMBERED:],
        run=look.seen.run,
        gpus=compute.workers * compute.per_worker.gpus,
        page=look.settings.tracking_page or look.settings.tracking_uri,
        now=look.now,
    )
    return Plan(status=status)


def _remembered_cause(look: _Look, last: Attempt) -> Cause:
    """Why the last attempt ended: from its RayJob while there is one, else from the status."""
    if look.old.reason == last.outcome and look.old.message:
        return Cause(look.old.reason or "", look.old.message.split("; attempt ")[0])
    ray_job = _ray_job_of(last, look.seen)
    if ray_job is not None and is_over(ray_job):
        return failure_cause(ray_job, *_of_attempt(ray_job, look.seen), look.seen.run)
    run = look.seen.run
    if run is not None and run.tags.get(FAILURE_REASON) == last.outcome:
        return Cause(last.outcome or "", run.tags.get(FAILURE_MESSAGE, ""))
    return Cause(last.outcome or "UserCodeError", f"attempt {last.number} ended: {last.outcome}")


def _ray_job_of(attempt: Attempt, seen: Observed) -> RayJobFacts | None:
    return next((facts for facts in seen.ray_jobs if facts.name == attempt.ray_job), None)


def _of_attempt(ray_job: RayJobFacts, seen: Observed) -> tuple[tuple[PodFacts, ...], tuple[RayClusterFacts, ...]]:
    """The pods and clusters of one attempt: those of an earlier one may still be there."""
    pods = tuple(pod for pod in seen.pods if pod.ray_cluster == ray_job.ray_cluster or pod.role == "submitter")
    clusters = tuple(cluster for cluster in seen.ray_clusters if cluster.name == ray_job.ray_cluster)
    return pods, clusters
