"""What to do about a PretrainJob or FineTuneJob: from the resource and what is observed to writes and a status."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from plinth_api.errors import InvalidSpec, Problem
from plinth_api.lenient import read_leniently
from plinth_api.model_service import ModelService
from plinth_api.parse import Job, Resource, parse_resource, readable_part
from plinth_api.resolve import referenced_aliases, resolve_train_run
from plinth_api.run_tags import FAILURE_MESSAGE, FAILURE_REASON, GATE, PHASE, START_STEP
from plinth_api.status import Attempt, JobPhase, JobStatus
from plinth_operator.facts import Manifest, ObjectFacts, Observed, RayJobFacts
from plinth_operator.plan.acceptance import invalid_spec_cause, refused_plan, spec_problems
from plinth_operator.plan.access import build_network_policy
from plinth_operator.plan.attempts import (
    MAX_REMEMBERED,
    SPEC_CHANGED,
    finished,
    is_over,
    is_waiting_in_queue,
    known_attempts,
    next_step,
    with_start,
)
from plinth_operator.plan.children import job_children
from plinth_operator.plan.drift import changed_children
from plinth_operator.plan.endings import End, end_of
from plinth_operator.plan.existence import missing_cause
from plinth_operator.plan.look import Look
from plinth_operator.plan.plan import Plan, RunRequest
from plinth_operator.plan.refusals import steady_cause
from plinth_operator.plan.run_config import build_run_config, resolve_settings_for, run_config_name
from plinth_operator.settings import Settings
from plinth_operator.status.causes import failure_cause, suspended_cause, waiting_cause
from plinth_operator.status.jobs import Verdict, build_job_status, seconds_held
from plinth_operator.status.progress import checkpoint_from_run
from plinth_operator.status.reasons import Cause

_RUNNING = ("Queued", "Starting", "Training", "Evaluating")
_TERMINAL_RUN = ("FINISHED", "FAILED", "KILLED")

_UNTOLD = timedelta(seconds=60)
"""So long may a new job wait for MLflow, in a queue of a thousand of its like, before a status says so."""


def plan_job(
    document: Manifest, seen: Observed, *, settings: Settings, now: datetime, refusal: Cause | None = None
) -> Plan:
    """The plan for a job.

    Args:
        document: The resource as JSON types, status included.
        seen: What is known of its surroundings.
        settings: What the platform team has decided.
        now: The time.
        refusal: Why the API server has just refused a child that this plan asks for.
    """
    old = read_leniently(JobStatus, document.get("status") or {}) or JobStatus()
    has_begun, unreadable = bool(old.attempts or seen.ray_jobs), None
    job: Resource | None
    try:
        job = parse_resource({**document, "status": None})
    except InvalidSpec as error:
        job, unreadable = readable_part({**document, "status": None}) if has_begun else None, error
        if job is None:
            return refused_plan(document, old, seen, error, now)
    assert not isinstance(job, ModelService)
    created = datetime.fromisoformat(document["metadata"].get("creationTimestamp") or "0001-01-01T00:00:00Z")
    look = Look(job, old, seen, settings, now, now - created, refusal, unreadable)
    if old.phase in ("Succeeded", "Failed") and old.attempts:
        return _plan_after_end(look)
    if not has_begun and (problems := spec_problems(job, seen.claims, settings)):
        return refused_plan(document, old, seen, InvalidSpec(*problems), now)
    return _plan_attempts(look)


def _plan_attempts(look: Look) -> Plan:
    seen = look.seen
    attempts = known_attempts(look.old.attempts, seen.ray_jobs, queued=look.queued)
    if not attempts or attempts[-1].finished_at is not None:
        return _plan_next(look, attempts)
    live = attempts[-1]
    ended = end_of(look, live, attempts)
    if ended is None:
        return _running(look, attempts)
    if ended.wait_for_record:
        waiting = Verdict("Evaluating", ended.cause)
        return replace(_report(look, waiting, attempts), want_read=True, requeue_seconds=2.0)
    checkpoint = (checkpoint_from_run(seen.run) if seen.run else None) or look.old.checkpoint
    attempts[-1] = finished(live, ended.outcome, ended.at, look.run_of(live), checkpoint)
    plan = _plan_next(look, attempts, ended)
    deletions = tuple(ended.deletions) or plan.deletions
    return replace(plan, deletions=deletions, look_again=tuple(ended.look_again), look_at_pods=ended.look_at_pods)


def _plan_next(look: Look, attempts: list[Attempt], ended: End | None = None) -> Plan:
    """What follows the last attempt; `ended` says how it has ended, where the status does not know that yet."""
    job, last = look.job, attempts[-1] if attempts else None
    held = look.ray_job_of(last) if last and is_waiting_in_queue(last, look.seen.ray_jobs) else None
    if held is not None and not look.has_drifted(held):
        return _waiting_in_queue(look, held, attempts)
    left = _left_of(look, last)
    goes_next = bool(left and ended is not None and ended.look_again)
    following = next_step(attempts, job.spec.restart.max_restarts, look.now)
    if following.step == "succeed":
        return _conclude(look, Verdict("Succeeded", None), attempts)
    if following.step == "fail" or (last and last.outcome == "DeadlineExceeded"):
        assert last is not None
        plan = _conclude(look, Verdict("Failed", _cause_of(look, last, ended)), attempts)
        return replace(plan, requeue_seconds=0.0) if goes_next else plan
    if job.spec.suspend:
        return replace(_report(look, Verdict("Suspended", None), attempts), deletions=left)
    if following.step == "wait":
        assert last is not None
        assert following.at is not None
        cause = _cause_of(look, last, ended)
        text = f"{cause.message}; attempt {last.number + 1} starts at {following.at:%H:%M:%S} UTC"
        wait = (following.at - look.now).total_seconds() + 0.5
        waiting = _report(look, Verdict("Pending", Cause(cause.reason, text)), attempts)
        deletions, wait = ((), 0.0) if goes_next else (left, wait)
        return replace(waiting, deletions=deletions, requeue_seconds=wait)
    if ended is not None:
        # In the status first: beside the RayJob of the next attempt, one that has no end there would count as running.
        return replace(_report(look, Verdict("Pending", ended.cause), attempts), requeue_seconds=0.0)
    plan = _start(look, attempts)
    return replace(plan, deletions=(*left, *plan.deletions))


def _left_of(look: Look, last: Attempt | None) -> tuple[RayJobFacts, ...]:
    """The RayJob of an attempt that is over, where it would go on beside the next one."""
    ray_job = look.ray_job_of(last) if last is not None else None
    if last is None or ray_job is None or ray_job.deleting:
        return ()
    return (ray_job,) if last.outcome == SPEC_CHANGED or not is_over(ray_job) else ()


def _cause_of(look: Look, last: Attempt, ended: End | None) -> Cause:
    return (ended.cause if ended is not None else None) or _remembered_cause(look, last)


def _waiting_in_queue(look: Look, ray_job: RayJobFacts, attempts: list[Attempt]) -> Plan:
    """Kueue has stopped the RayJob of the last attempt, and will start the same one again."""
    if look.job.spec.suspend:
        return replace(_report(look, Verdict("Suspended", None), attempts), deletions=(ray_job,))
    cause = waiting_cause((), (), look.seen.workloads) or Cause("WaitingForQuota", "Kueue took the machines back")
    return _kept(look, ray_job, _report(look, Verdict("Queued", cause), attempts))


def _running(look: Look, attempts: list[Attempt]) -> Plan:
    live = attempts[-1]
    ray_job = look.ray_job_of(live)
    assert ray_job is not None
    pods, clusters = look.around(ray_job)
    has_begun = ray_job.deployment_status == "Running" and ray_job.job_status not in ("", "PENDING")
    pods = look.needed(pods) if has_begun else pods
    cause: Cause | None = waiting_cause(pods, clusters, look.seen.workloads)
    run = look.run_of(live)
    started = run.tags.get(START_STEP, "") if run else ""
    if started.isdigit():
        attempts[:] = with_start(attempts, int(started), run.step if run else None)
    if look.queued and (ray_job.suspended or ray_job.deployment_status == "Suspended"):
        verdict = Verdict("Queued", cause or Cause("WaitingForQuota", "Kueue has not admitted the job yet"))
    elif has_begun:
        told = run.tags.get(PHASE, "") if run else ""
        stepping = run is not None and run.step is not None
        phase: JobPhase = "Training" if stepping or told == "training" else "Starting"
        verdict = Verdict("Evaluating" if told == "evaluating" else phase, look.lost_pod_cause(pods) or cause)
    else:
        verdict = Verdict("Starting", cause or suspended_cause(ray_job))
    drifted = live.number if look.has_drifted(ray_job) else None
    plan = _kept(look, ray_job, _report(look, replace(verdict, drifted_attempt=drifted), attempts))
    limit = look.job.spec.active_deadline_seconds
    if limit is None:
        return plan
    return replace(plan, requeue_seconds=max(1.0, limit - seconds_held(attempts, look.now) + 1))


def _kept(look: Look, ray_job: RayJobFacts, plan: Plan) -> Plan:
    """The plan, and what an attempt needs beside its RayJob, where somebody has deleted or edited it.

    A pod that is made anew mounts the ConfigMap. One of another spec would be a lie about what the attempt ran.
    """
    job, seen, settings = look.job, look.seen, look.settings
    policies = (build_network_policy(job, settings=settings),) if settings.network_policies else ()
    changed, _ = changed_children(policies, seen.children)
    name = run_config_name(job, ray_job.attempt)
    there = any((known.kind, known.name) == ("ConfigMap", name) for known in seen.children)
    if there or look.is_rendered_otherwise(ray_job) or _problems_now(look):
        return replace(plan, children=changed)
    prefix = resolve_settings_for(job, settings, None).registry_prefix
    missing = tuple(uri for uri in referenced_aliases(job, prefix) if not seen.versions.get(uri))
    if missing:
        return replace(plan, children=changed, want_versions=missing)
    run_id = seen.run.run_id if seen.run else look.old.tracking.run_id if look.old.tracking else None
    run = resolve_train_run(job, resolve_settings_for(job, settings, run_id), seen.versions)
    return replace(plan, children=(build_run_config(run, job, ray_job.attempt), *changed))


def _start(look: Look, attempts: list[Attempt]) -> Plan:
    """The next attempt, unless something that it needs does not exist yet."""
    job, seen, settings = look.job, look.seen, look.settings
    if attempts and (problems := _problems_now(look)):
        refused = Verdict("Pending", invalid_spec_cause(InvalidSpec(*problems)), accepted=False)
        return _report(look, refused, attempts)
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
        # A job that waits for its model has no run yet.
        request = None if run_id or missing else _run_request(job, settings)
        plan = _report(look, Verdict("Pending", cause), attempts)
        if cause is None and look.old.phase is None and look.age < _UNTOLD:
            # MLflow answers in milliseconds: a status of that wait would be a write for nobody to read.
            plan = Plan(status={}, requeue_seconds=(_UNTOLD - look.age).total_seconds())
        return replace(plan, want_run=request, want_versions=missing)
    number = attempts[-1].number + 1 if attempts else 1
    run = resolve_train_run(job, resolve_settings_for(job, settings, run_id), seen.versions)
    children, stale = changed_children(job_children(job, run, attempt=number, settings=settings), seen.children)
    return replace(_report(look, _start_verdict(look, attempts), attempts), children=children, deletions=stale)


def _problems_now(look: Look) -> tuple[Problem, ...]:
    """What speaks against another attempt: the spec of a suspended job may have changed, and the operator too."""
    if look.unreadable is not None:
        return look.unreadable.problems
    return spec_problems(look.job, look.seen.claims, look.settings)


def _start_verdict(look: Look, attempts: Sequence[Attempt]) -> Verdict:
    if look.refusal is None:
        return Verdict("Starting", None)
    cause = steady_cause(look.refusal, look.old, look.job.metadata.generation)
    is_invalid = cause.reason == "InvalidSpec"
    # Failed is for good once there was an attempt.
    return Verdict("Failed" if is_invalid and not attempts else "Pending", cause, accepted=not is_invalid)


def _held_back(look: Look, aliases: Sequence[str]) -> Cause | None:
    seen = look.seen
    missing = missing_cause(look.job, seen, aliases, seen.versions, look.settings)
    if missing is None and seen.tracking_error and seen.run is None and look.old.tracking is None:
        return Cause("TrackingUnavailable", seen.tracking_error)
    return missing


def _run_request(job: Job, settings: Settings) -> RunRequest:
    document = resolve_train_run(job, resolve_settings_for(job, settings, None), {})
    return RunRequest(document.tracking.experiment, document.tracking.run_name, dict(document.tracking.tags))


def _conclude(look: Look, verdict: Verdict, attempts: Sequence[Attempt]) -> Plan:
    plan = _report(look, verdict, attempts)
    ttl = look.job.spec.ttl_seconds_after_finished
    return replace(plan, end_run=_wanted_end(look, verdict.phase), requeue_seconds=float(ttl) if ttl else None)


def _wanted_end(look: Look, phase: str) -> str:
    run = look.seen.run
    if run is None or run.status in _TERMINAL_RUN:
        return ""
    return "FINISHED" if phase == "Succeeded" or run.tags.get(GATE) == "Failed" else "FAILED"


def _plan_after_end(look: Look) -> Plan:
    """A job that is over stays as it is, whatever becomes of its children; in the end they are deleted."""
    assert look.old.phase is not None
    status = {**look.old.to_wire(), "observedGeneration": look.job.metadata.generation}
    left = _left_of(look, look.old.attempts[-1])
    plan = Plan(status=status, end_run=_wanted_end(look, look.old.phase), deletions=left)
    ttl, ended = look.job.spec.ttl_seconds_after_finished, look.old.attempts[-1].finished_at
    if ttl is None or ended is None:
        return plan
    seconds = ttl - (look.now - ended).total_seconds()
    if seconds > 0:
        return replace(plan, requeue_seconds=seconds + 0.5)
    children: tuple[ObjectFacts, ...] = (*look.seen.ray_jobs, *look.seen.children)
    return replace(plan, deletions=tuple(child for child in children if not child.deleting))


def _report(look: Look, verdict: Verdict, attempts: Sequence[Attempt]) -> Plan:
    compute = look.job.spec.compute
    if look.unreadable is not None and verdict.cause is None and verdict.phase in _RUNNING:
        verdict = replace(verdict, cause=invalid_spec_cause(look.unreadable), accepted=False)
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


def _remembered_cause(look: Look, last: Attempt) -> Cause:
    """Why the last attempt ended: from its RayJob while there is one, else from the status."""
    outcome = last.outcome or "UserCodeError"
    if look.old.reason == outcome and look.old.message:
        return Cause(outcome, look.old.message.split("; attempt ")[0])
    ray_job = look.ray_job_of(last)
    if ray_job is not None and is_over(ray_job):
        return failure_cause(ray_job, *look.around(ray_job), look.seen.run)
    told = look.seen.run.tags if look.seen.run else {}
    if told.get(FAILURE_REASON) == outcome:
        return Cause(outcome, told.get(FAILURE_MESSAGE, ""))
    return Cause(outcome, f"attempt {last.number} ended: {outcome}")
