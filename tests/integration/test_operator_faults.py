"""What lies between the operator and its servers fails, on purpose: it converges all the same, and floods nobody."""

import itertools
import re
import time
import urllib.error

import pytest

from cluster.control_plane import wait_until
from cluster.faulty_proxy import Rule
from lives import RUNNING, Runs, picture, tell_ray_jobs
from makers import pretrain_document, service_document
from namespaces import Namespace
from operators import operator_behind_proxies

pytestmark = pytest.mark.integration

SERVICE = {"model": {"uri": "models:/tiny/1"}}
WATCHED = "pretrainjobs|rayjobs|configmaps|networkpolicies|rayclusters|pods"


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory, control_plane, tracking):
    # The Lease outlives what is done to it here.
    folder = tmp_path_factory.mktemp("operator")
    with operator_behind_proxies(folder, control_plane, tracking.uri, lease_seconds="60") as disturbed:
        yield disturbed


@pytest.fixture
def cluster(control_plane, namespace, disturbed):
    yield Namespace(control_plane, namespace, disturbed.operator.log)
    disturbed.api.rules = []


def live(cluster):
    """A job's life with a change of mind: what is left of it depends on writes, and on watches being heard."""
    cluster.claim("plinth")
    made = cluster.create(pretrain_document())
    cluster.wait_status(made, phase="Starting", reason="Unschedulable", seconds=90)
    cluster.merge(made, {"spec": {"suspend": True}})
    cluster.wait_status(made, phase="Suspended", seconds=90)
    wait_until(lambda: cluster.ray_jobs() == [], 60, "the end of the RayJob")
    cluster.merge(made, {"spec": {"suspend": False}})
    cluster.wait_status(made, phase="Starting", reason="Unschedulable", seconds=90)
    return made


@pytest.fixture(scope="module")
def undisturbed(control_plane, disturbed, tracking):
    cluster = Namespace(control_plane, control_plane.create_namespace(), disturbed.operator.log)
    made = live(cluster)
    number = len(disturbed.api.log)
    yield picture(cluster, made, Runs(tracking.uri)), number
    control_plane.delete_namespace(cluster.name)


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(Rule("respond", "PATCH", "tiny/status", status=409, times=4), id="conflicts"),
        pytest.param(Rule("respond", "POST", "/rayjobs", status=409, times=3), id="conflicts of a creation"),
        pytest.param(Rule("respond", None, "PLACE", status=500, watch=False, times=6), id="internal errors"),
        pytest.param(Rule("respond", None, "PLACE", status=429, watch=False, times=6), id="too many requests"),
        pytest.param(Rule("fail_after", "POST", "PLACE", status=500, times=4), id="writes that fail and are done"),
        pytest.param(Rule("fail_after", "PATCH", "PLACE", status=503, times=4), id="patches that fail and are done"),
        pytest.param(Rule("delay", None, WATCHED, watch=True, seconds=0.2), id="delayed events"),
        pytest.param(Rule("duplicate", None, WATCHED), id="events that come twice"),
        pytest.param(Rule("cut", None, WATCHED, events=1, times=20), id="watches that are cut after an event"),
        pytest.param(Rule("expire", None, WATCHED, times=20), id="resource versions that are too old"),
    ],
)
def test_a_job_comes_to_the_same_end(rule, cluster, disturbed, runs, undisturbed):
    rule.path = rule.path.replace("PLACE", f"/namespaces/{cluster.name}/")
    if rule.path == "/rayjobs":
        rule.path = f"/namespaces/{cluster.name}/rayjobs"
    wanted, number = undisturbed
    started = len(disturbed.api.log)
    disturbed.api.rules = [rule]
    if re.search(WATCHED, rule.path) and rule.method is None:
        # Watches that are open already would go on as they are.
        disturbed.api.away()
        disturbed.api.back()
    made = live(cluster)
    assert picture(cluster, made, runs) == wanted
    assert rule.hits
    assert len(disturbed.api.log) - started < 3 * number + 10 * rule.hits


def test_the_api_server_is_asked_again_only_after_the_time_that_it_names(cluster, disturbed):
    cluster.claim("plinth")
    rule = Rule("respond", "POST", f"/namespaces/{cluster.name}/rayjobs", status=429, retry_after=2, times=2)
    disturbed.api.rules = [rule]
    made = cluster.create(pretrain_document())
    cluster.wait_status(made, phase="Starting")
    asked = [entry.time for entry in disturbed.api.writes(rule.path)]
    assert len(asked) == 3
    assert all(later - sooner >= 2 for sooner, later in itertools.pairwise(asked))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"action": "respond", "status": 500}, id="internal errors"),
        pytest.param({"action": "cut", "events": 0}, id="watches that are cut at once"),
        pytest.param({"action": "expire"}, id="resource versions that are always too old"),
        pytest.param({"action": "respond", "status": 410, "watch": True}, id="watches that are refused as too old"),
    ],
)
def test_a_fault_that_lasts_is_met_with_patience(fault, cluster, disturbed):
    rule = Rule(path="/pretrainjobs", **fault)
    disturbed.api.rules = [rule]
    disturbed.api.away()
    disturbed.api.back()
    started, began = len(disturbed.api.log), time.monotonic()
    cluster.claim("plinth")
    made = cluster.create(pretrain_document())
    time.sleep(5)
    asked = [entry.path for entry in disturbed.api.log[started:] if "/pretrainjobs" in entry.path]
    assert len(asked) < 4 * (time.monotonic() - began)
    disturbed.api.rules = []
    cluster.wait_status(made, phase="Starting", seconds=90)


def test_a_watch_that_falls_silent_is_noticed_and_outlived(control_plane, tmp_path, tracking, namespace):
    with operator_behind_proxies(
        tmp_path, control_plane, tracking.uri, namespace=namespace, resync_seconds="12"
    ) as disturbed:
        disturbed.api.rules = [Rule("silence", path="/pretrainjobs")]
        cluster = Namespace(control_plane, namespace, disturbed.operator.log)
        wait_until(lambda: has_listed(disturbed.api.log) and disturbed.api.rules[0].hits, 60, "the silent watch")
        assert health(disturbed.operator) == "ok"
        cluster.claim("plinth")
        made = cluster.create(pretrain_document())
        # The list finds what the watch has not told.
        cluster.wait_status(made, phase="Starting", seconds=90)
        wait_until(lambda: "pretrainjob" in health(disturbed.operator).lower(), 60, "the probe to tell of it")


def has_listed(log):
    """Whether the first list of the leader is over: modelservices are the last kind in it."""
    lists = (entry for entry in list(log) if "/modelservices?" in entry.path and "watch=" not in entry.path)
    return any(entry.status and "kopf" not in entry.user_agent for entry in lists)


def health(operator):
    try:
        return operator.get("/healthz")
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"


def test_mlflow_away_holds_new_jobs_and_disturbs_no_running_one(cluster, disturbed, runs):
    cluster.claim("plinth")
    running = cluster.create(pretrain_document(name="running"))
    cluster.wait_status(running, phase="Starting", reason="Unschedulable")
    tell_ray_jobs(cluster, RUNNING, "running")
    disturbed.mlflow.away()
    try:
        waiting = cluster.create(pretrain_document(name="waiting"))
        serving = cluster.create(service_document(**SERVICE))
        status = cluster.wait_status(waiting, phase="Pending", reason="TrackingUnavailable")
        assert "MLflow" in status["message"]
        # A service of a version needs nothing of MLflow.
        cluster.wait_status(serving, phase="Starting")
        assert [name.split("-")[0] for name in cluster.ray_jobs()] == ["running"]
        assert len([item for item in cluster.items("", "configmaps") if "waiting" in item["metadata"]["name"]]) == 0
        phase = cluster.get(running)["status"]["phase"]
        assert phase == "Starting"
    finally:
        disturbed.mlflow.back()
    cluster.wait_status(waiting, phase="Starting", seconds=90)
    for made in (running, waiting):
        assert runs.states(made["metadata"]["uid"]) == ["RUNNING"]
