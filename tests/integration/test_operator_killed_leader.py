"""Two operators at once: one leads, and the other takes over when it is killed, or at once when it leaves."""

import json
import time

import pytest

from cluster.control_plane import wait_until
from lives import Runs
from makers import pretrain_document
from namespaces import Namespace
from operators import OperatorProcess
from plinth_operator.settings import Settings

pytestmark = pytest.mark.integration

NUM_JOBS = 6


class Pair:
    """Two operators for one namespace, and the Lease between them."""

    def __init__(self, folder, plane, namespace, tracking, **settings):
        self.plane, self.home = plane, plane.create_namespace()
        self.operators = []
        for name in ("one", "other"):
            own = folder / name
            own.mkdir()
            # Short, as the standby waits for its end.
            settings = {"namespace": namespace, "operator_namespace": self.home, "lease_seconds": "3", **settings}
            self.operators.append(OperatorProcess(own, plane.kubeconfig, tracking.uri, **settings))

    def __enter__(self):
        for operator in self.operators:
            operator.start()
        wait_until(self.leader, 60, "one that leads")
        # The other one watches already.
        wait_until(lambda: all(self.is_up(operator) for operator in self.operators), 60, "both")
        return self

    def __exit__(self, *_):
        for operator in self.operators:
            operator.kill()

    def is_up(self, operator):
        try:
            return operator.get("/healthz") == "ok"
        except OSError:
            return False

    def lease(self):
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.home}/leases/plinth-operator"
        return self.plane.request("GET", path)["spec"]

    def leader(self):
        """The one that says that it leads, of those that live."""
        living = [operator for operator in self.operators if operator.process.poll() is None]
        leading = [operator for operator in living if "leading as" in operator.log.read_text()]
        assert len(leading) < 2, "two operators lead"
        return leading[0] if leading else None


def create_jobs(cluster, prefix):
    return [cluster.create(pretrain_document(name=f"{prefix}-{number}")) for number in range(NUM_JOBS)]


def assert_each_is_there_once(cluster, runs, jobs):
    for made in jobs:
        cluster.wait_status(made, phase="Starting", seconds=90)
    wait_until(lambda: len(cluster.items("ray.io/v1", "rayclusters")) == len(jobs), 60, "a cluster for each job")
    names = sorted(f"{made['metadata']['name']}-{made['metadata']['uid'][:5]}-1" for made in jobs)
    assert cluster.ray_jobs() == names
    for made in jobs:
        status = cluster.get(made)["status"]
        assert [attempt["rayJob"] for attempt in status["attempts"]] == [
            name for name in names if name.startswith(f"{made['metadata']['name']}-{made['metadata']['uid'][:5]}")
        ]
        assert [run["info"]["run_id"] for run in runs.of(made["metadata"]["uid"])] == [status["tracking"]["runId"]]


def test_the_standby_takes_over_from_a_killed_leader_and_nothing_is_done_twice(
    control_plane, namespace, tracking, tmp_path
):
    runs = Runs(tracking.uri)
    with Pair(tmp_path, control_plane, namespace, tracking) as pair:
        cluster = Namespace(control_plane, namespace, pair.leader().log)
        cluster.claim("plinth")
        jobs = create_jobs(cluster, "early")
        leader = pair.leader()
        # While the leader is in the middle of them.
        wait_until(cluster.ray_jobs, 60, "the first RayJob")
        leader.kill()
        jobs += create_jobs(cluster, "late")
        wait_until(pair.leader, 60, "the standby to lead")
        assert pair.leader() is not leader
        assert pair.lease()["leaseTransitions"] == 1
        assert_each_is_there_once(cluster, runs, jobs)


def test_the_standby_works_within_20_seconds_of_the_kill_of_a_leader_with_the_default_lease(
    control_plane, namespace, tracking, tmp_path
):
    default = str(Settings().lease_seconds)
    with Pair(tmp_path, control_plane, namespace, tracking, lease_seconds=default) as pair:
        cluster = Namespace(control_plane, namespace, pair.leader().log)
        cluster.claim("plinth")
        pair.leader().kill()
        killed = time.monotonic()
        cluster.create(pretrain_document(name="late"))
        wait_until(cluster.ray_jobs, 60, "a RayJob by the standby")
        assert time.monotonic() - killed < 20


def test_a_leader_that_leaves_hands_over_at_once(control_plane, namespace, tracking, tmp_path):
    # Without the handing over it would take the whole minute.
    with Pair(tmp_path, control_plane, namespace, tracking, lease_seconds="60") as pair:
        cluster = Namespace(control_plane, namespace, pair.leader().log)
        cluster.claim("plinth")
        leader = pair.leader()
        leader.stop()
        assert leader.process.returncode == 0
        jobs = create_jobs(cluster, "late")
        wait_until(pair.leader, 30, "the standby to lead, before the Lease ends")
        assert_each_is_there_once(cluster, Runs(tracking.uri), jobs)


def test_a_leader_whose_lease_was_taken_stops_at_once(control_plane, namespace, tracking, tmp_path):
    operator = OperatorProcess(
        tmp_path, control_plane.kubeconfig, tracking.uri, namespace=namespace, operator_namespace=namespace
    ).start()
    try:
        wait_until(lambda: "leading as" in operator.log.read_text(), 60, "it to lead")
        path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/plinth-operator"
        taken = {"spec": {"holderIdentity": "somebody-else", "leaseDurationSeconds": 3600}}
        control_plane.request("PATCH", path, json.dumps(taken).encode(), "application/merge-patch+json")
        wait_until(lambda: operator.process.poll() is not None, 30, "its end")
        assert operator.process.returncode == 1
        assert "another replica leads" in operator.log.read_text()
    finally:
        operator.kill()
