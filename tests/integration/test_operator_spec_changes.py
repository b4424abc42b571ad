"""A spec that changes when its first attempt is made already, but has not run: the next attempt has the last spec."""

import pytest

from cluster.control_plane import wait_until
from cluster.faulty_proxy import Rule
from lives import Runs
from makers import pretrain_document
from plinth_operator.settings import Settings
from sequences import job_problems

pytestmark = pytest.mark.integration

LONGER = {"spec": {"training": {"steps": 20}}}


@pytest.fixture
def job(cluster):
    """A job that asks for ten steps; the operator knows its namespace's claim."""
    cluster.claim("plinth")
    return pretrain_document()


def wait_for_the_last_spec(cluster, tracking_uri, settings):
    """Wait until RayJob, run.json and all else are those of the spec as it is now; the status."""
    document = pretrain_document()
    problems = []

    def is_right():
        found = cluster.get(document)
        uid = found["metadata"]["uid"]
        children = {}
        for group, plural in (
            ("", "configmaps"),
            ("networking.k8s.io/v1", "networkpolicies"),
            ("ray.io/v1", "rayjobs"),
        ):
            for item in cluster.items(group, plural):
                if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences", ())):
                    children[plural, item["metadata"]["name"]] = item
        problems[:] = job_problems(found, children, Runs(tracking_uri), settings)
        return found["status"] if not problems else None

    try:
        return wait_until(is_right, 60, "the last spec")
    except TimeoutError:
        raise AssertionError(problems) from None


def outcomes(status):
    return [attempt.get("outcome") for attempt in status["attempts"]]


def test_a_change_before_the_status_names_the_attempt_replaces_it(cluster, disturbed, job, tracking):
    disturbed.api.rules = [Rule("respond", "PATCH", f"/namespaces/{cluster.name}/.*/status", body="attempts")]
    cluster.create(job)
    wait_until(cluster.ray_jobs, 60, "the first RayJob")
    cluster.merge(job, LONGER)
    disturbed.api.rules = []
    status = wait_for_the_last_spec(cluster, tracking.uri, Settings(tracking_uri=disturbed.mlflow.url))
    assert outcomes(status) == ["SpecChanged", None]
    assert "SpecChanged" in [event["reason"] for event in cluster.items("", "events")]


def test_so_does_a_change_while_the_operator_is_away(cluster, disturbed, job, tracking):
    held = Rule("hold", "PATCH", f"/namespaces/{cluster.name}/.*/status", body="attempts", times=1)
    disturbed.api.rules = [held]
    cluster.create(job)
    assert held.reached.wait(60)
    disturbed.operator.kill()
    cluster.merge(job, LONGER)
    disturbed.operator.start()
    status = wait_for_the_last_spec(cluster, tracking.uri, Settings(tracking_uri=disturbed.mlflow.url))
    assert outcomes(status) == ["SpecChanged", None]


def test_a_job_suspended_changed_and_resumed_at_once_has_the_new_spec(cluster, disturbed, job, tracking):
    cluster.create(job)
    cluster.wait_status(job, phase="Starting")
    for change in ({"spec": {"suspend": True}}, LONGER, {"spec": {"suspend": False}}):
        cluster.merge(job, change)
    status = wait_for_the_last_spec(cluster, tracking.uri, Settings(tracking_uri=disturbed.mlflow.url))
    # Whether the operator saw it suspended hangs on the moment; that it has the new spec does not.
    assert outcomes(status) in (["SpecChanged", None], ["Suspended", None])
    assert status["conditions"][0]["reason"] == "Accepted"


def test_only_a_changed_spec_replaces_an_attempt(cluster, disturbed, job, tracking):
    cluster.create(job)
    cluster.wait_status(job, phase="Starting", reason="Unschedulable")
    cluster.merge(job, {"spec": {"restart": {"maxRestarts": 7}}})
    generation = cluster.get(job)["metadata"]["generation"]
    status = cluster.wait_status(job, observedGeneration=generation)
    assert outcomes(status) == [None]
    wait_for_the_last_spec(cluster, tracking.uri, Settings(tracking_uri=disturbed.mlflow.url))
