"""What a job survives at the least, one thing after the other on one job: `make test` has these.

Each test begins with a job that trains and leaves one behind; the last deletes it.
"""

import json
import time
import urllib.error

import pytest

from cluster.control_plane import wait_until
from faults import Faults
from plinth_release import DRAIN_SECONDS, Release
from small_job import KIND, SmallJob, add_storage, small_job
from teams import Team

pytestmark = pytest.mark.timeout(1200)

GRACE_SECONDS = DRAIN_SECONDS + 30
"""The grace period of a job's pods."""

CHILDREN = ("pods", "rayjobs", "rayclusters", "configmaps", "networkpolicies", "services", "jobs.batch")


@pytest.fixture(scope="module")
def applied(team: Team) -> SmallJob:
    return SmallJob(team, add_storage(team), small_job("survivor"))


@pytest.fixture
def job(applied: SmallJob) -> SmallJob:
    applied.wait_training()
    return applied


def test_a_drained_node_costs_one_step_at_most(job: SmallJob, faults: Faults):
    with faults.ends_attempt("worker evicted with grace (kubectl drain)", job) as told:
        evict(job.team, job.team.pod(job.name, "worker"))
    assert told["reason"] == "NodeLost"
    assert max(told["stepsLost"], told["stepsLostByStatus"]) <= 1


def test_a_lost_head_is_followed_by_an_attempt_that_resumes(job: SmallJob, faults: Faults):
    with faults.ends_attempt("head pod deleted", job) as told:
        job.delete_pod("head", "--grace-period=0", "--force")
    assert told["reason"] == "HeadLost"


def test_a_deleted_job_saves_and_leaves_nothing_behind(job: SmallJob, release: Release, faults: Faults):
    run_id, team, at = job.run_id(), job.team, time.time()
    team.kubectl("delete", KIND, job.name, "--wait=false")
    wait_until(lambda: not team.pods(job.name), GRACE_SECONDS, f"the end of the pods of {job.name}")
    gone = round(time.time() - at, 1)
    last, saved = (max(e["step"] for e in job.events() if e["event"] == event) for event in ("step", "checkpoint"))
    faults.add("job deleted while it trained", reason="", stepsLost=last - saved, podsGoneSeconds=gone)
    assert last - saved <= 1
    assert wait_until(lambda: ended(release, run_id), 60, "the end of the run") == "KILLED"
    wait_until(lambda: not children(team), 60, "the end of its other children")


def children(team: Team) -> list[str]:
    """What Plinth and KubeRay have made in a namespace, for whatever resource."""
    return [f"{kind}/{item['metadata']['name']}" for kind in CHILDREN for item in team.items(kind, "plinth.dev/uid")]


def evict(team: Team, pod: str) -> None:
    """What `kubectl drain` does to each pod of a node."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": team.name}}
    team.node.plane.request("POST", f"/api/v1/namespaces/{team.name}/pods/{pod}/eviction", json.dumps(body).encode())


def ended(release: Release, run_id: str) -> str:
    """The state of a run that has ended, "" before."""
    try:
        status = release.mlflow(f"runs/get?run_id={run_id}")["run"]["info"]["status"]
    except urllib.error.URLError:
        return ""
    return "" if status == "RUNNING" else str(status)
