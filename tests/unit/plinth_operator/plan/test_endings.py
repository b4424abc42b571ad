"""How attempts end whose pods must go: the workers save and stop, or a pod is gone before the end is seen."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from makers import pretrain_document
from plinth_operator.facts import ClaimFacts, Observed, PodFacts, RayJobFacts, RunFacts
from plinth_operator.plan.jobs import plan_job
from plinth_operator.plan.plan import Plan
from rendering import SETTINGS, UID

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
END = T0 + timedelta(seconds=50)
CLAIM = ClaimFacts(
    "PersistentVolumeClaim", "team-a", "plinth", "c", "", 1, phase="Bound", access_modes=("ReadWriteMany",)
)
TAGS = {"plinth.phase": "stopped", "plinth.checkpointStep": "7", "plinth.checkpointUri": "file:///7"}
STOPPED = RunFacts("r1", "1", status="RUNNING", step=7, tags=TAGS, read_at=END + timedelta(seconds=2))
TRAINS = replace(STOPPED, tags={**TAGS, "plinth.phase": "training"})


def pod(name: str, role: Any, **facts: Any) -> PodFacts:
    found = PodFacts("Pod", "team-a", name, name, UID, 1, role=role, ray_cluster="c1", phase="Running", ready=True)
    return replace(found, **facts)


def ray_job(**facts: Any) -> RayJobFacts:
    found = RayJobFacts("RayJob", "team-a", "tiny-abcde-1", "j1", UID, 1, attempt=1, created_at=T0, ray_cluster="c1")
    return replace(found, **facts)


HEAD, WORKER = pod("head", "head"), pod("one", "worker")
NEW = pod("two", "worker", ready=False)
EVICTED = replace(WORKER, disruption="EvictionByEvictionAPI", deleting=True)
PREEMPTED = replace(WORKER, disruption="PreemptionByScheduler", deleting=True)
RUNNING = ray_job(deployment_status="Running", job_status="RUNNING")
DONE = ray_job(deployment_status="Complete", job_status="SUCCEEDED", ended_at=END)
CRASHED = ray_job(
    deployment_status="Failed", job_status="FAILED", reason="AppFailed", message="ActorDiedError", ended_at=END
)


def plan(job: RayJobFacts, pods: tuple[PodFacts, ...], run: RunFacts, status: Any = None, **spec: Any) -> Plan:
    """Five seconds after the end; `status` is what was told before."""
    document = pretrain_document(namespace="team-a", uid=UID, **spec)
    document["metadata"]["generation"] = 1
    document["status"] = status or {}
    seen = Observed(claims={"plinth": CLAIM}, run=run, ray_jobs=(job,), pods=pods)
    return plan_job(document, seen, settings=SETTINGS, now=END + timedelta(seconds=5))


@pytest.mark.parametrize(
    ("worker", "outcome"),
    [
        pytest.param(EVICTED, "NodeLost", id="its node was drained"),
        pytest.param(PREEMPTED, "Preempted", id="it was preempted"),
        pytest.param(replace(WORKER, deleting=True), "RayJobStopped", id="it was deleted"),
    ],
)
def test_workers_that_saved_and_stopped_for_a_pod_that_must_go_are_followed_by_another_attempt(
    worker: PodFacts, outcome: str
):
    told = plan(DONE, (HEAD, worker), STOPPED).status
    assert (told["phase"], told["reason"]) == ("Pending", outcome)
    (attempt,) = told["attempts"]
    assert (attempt["outcome"], attempt["lostSteps"]) == (outcome, 0)


def test_what_a_run_said_before_the_end_is_no_reason_for_it():
    found = plan(DONE, (HEAD, WORKER), replace(STOPPED, read_at=END - timedelta(seconds=1)))
    assert (found.status["phase"], found.want_read) == ("Evaluating", True)


@pytest.mark.parametrize(
    ("job", "run"),
    [
        pytest.param(DONE, STOPPED, id="the workers have saved"),
        pytest.param(CRASHED, TRAINS, id="the workers could not save"),
    ],
)
@pytest.mark.parametrize(
    ("worker", "outcome"),
    [pytest.param(EVICTED, "NodeLost", id="evicted"), pytest.param(PREEMPTED, "Preempted", id="preempted")],
)
def test_a_pod_that_is_gone_before_the_end_is_seen_is_remembered(
    worker: PodFacts, outcome: str, job: RayJobFacts, run: RunFacts
):
    told = plan(RUNNING, (HEAD, worker), TRAINS).status
    assert (told["phase"], told["reason"]) == ("Training", outcome)
    told = plan(RUNNING, (HEAD, NEW), TRAINS, told).status
    assert (told["phase"], told["reason"]) == ("Training", outcome)
    if job is DONE:
        told = plan(job, (HEAD, NEW), replace(run, read_at=T0), told).status
        assert (told["phase"], told["reason"]) == ("Evaluating", outcome)
    told = plan(job, (), run, told).status
    assert (told["attempts"][0]["outcome"], told["reason"]) == (outcome, outcome)
    assert "worker pod one" in told["message"]


def test_an_attempt_that_goes_on_with_another_pod_is_not_said_to_have_lost_one():
    told = plan(RUNNING, (HEAD, EVICTED), TRAINS).status
    assert plan(RUNNING, (HEAD, replace(NEW, ready=True)), TRAINS, told).status["reason"] == ""


@pytest.mark.parametrize(
    "lost",
    [
        pytest.param(EVICTED, id="evicted"),
        pytest.param(replace(NEW, phase="Pending", unschedulable="0/3 nodes are available"), id="without a node"),
    ],
)
def test_an_elastic_attempt_trains_without_what_it_does_not_need(lost: PodFacts):
    elastic = {"workers": 2, "elastic": {"minWorkers": 1, "maxWorkers": 3}}
    told = plan(RUNNING, (HEAD, pod("three", "worker"), lost), TRAINS, compute=elastic).status
    assert (told["phase"], told["reason"]) == ("Training", "")
    told = plan(RUNNING, (HEAD, lost), TRAINS, compute=elastic).status
    assert (told["phase"], told["reason"]) == ("Training", "NodeLost" if lost is EVICTED else "Unschedulable")
