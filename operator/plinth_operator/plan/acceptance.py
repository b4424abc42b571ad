"""Whether a job can be carried out as its spec asks, and how a status says that it cannot. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from plinth_api.errors import InvalidSpec, Problem
from plinth_api.parse import Job
from plinth_api.resolve import resolve_train_run
from plinth_api.status import JobStatus
from plinth_operator.facts import ClaimFacts, Manifest, Observed
from plinth_operator.plan.plan import Plan
from plinth_operator.plan.raycluster import build_ray_cluster_spec
from plinth_operator.plan.run_config import resolve_settings_for
from plinth_operator.plan.storage import storage_problems
from plinth_operator.settings import Settings
from plinth_operator.status.jobs import Verdict, build_job_status
from plinth_operator.status.pod_causes import shorten
from plinth_operator.status.reasons import Cause

_MOST_PROBLEMS = 10


def spec_problems(job: Job, claims: Mapping[str, ClaimFacts], settings: Settings) -> tuple[Problem, ...]:
    """What the schema could not see: conflicts, what is not supported yet, a podTemplate or a claim that cannot work.

    Args:
        job: What the user asks for.
        claims: Those of its namespace, by name.
        settings: Of the operator.
    """
    try:
        resolve_train_run(job, resolve_settings_for(job, settings, None), {})
        build_ray_cluster_spec(job, settings=settings, attempt=1)
    except InvalidSpec as error:
        return error.problems
    if job.spec.compute.elastic and settings.queue_name:
        queue = f"the platform's queue {settings.queue_name}, which admits a fixed number of pods"
        return (Problem("spec.compute.elastic", f"not supported yet: spec.compute.elastic in {queue}; leave it out"),)
    return tuple(storage_problems(job, claims, settings))


def invalid_spec_cause(error: InvalidSpec) -> Cause:
    """InvalidSpec with every problem, of which there may be too many for a status."""
    told = [shorten(str(problem)) for problem in error.problems[:_MOST_PROBLEMS]]
    if left := len(error.problems) - len(told):
        told.append(f"and {left} more, which plinth validate names")
    return Cause("InvalidSpec", "; ".join(told))


def refused_plan(document: Manifest, old: JobStatus, seen: Observed, error: InvalidSpec, now: datetime) -> Plan:
    """A spec that cannot be carried out: nothing is created; what still runs from an older one is left to end."""
    if old.phase in ("Succeeded", "Failed") and old.attempts:
        return Plan(status=old.to_wire())
    verdict = Verdict("Failed", invalid_spec_cause(error), accepted=False)
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
