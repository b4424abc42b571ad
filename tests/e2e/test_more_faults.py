"""What else a job survives: first what must not disturb it at all, then what ends an attempt; on one job.

Each test begins with a job that trains and leaves one behind. Waits between attempts double with each failure, so that
those which end an attempt are few and told with their place in the order.
"""

import time
import urllib.error

import pytest

from cluster.addons import KUBERAY_NAMESPACE
from cluster.control_plane import wait_until
from cluster.node import Node
from faults import FORCED, Faults
from plinth_release import NAMESPACE, Release
from small_job import KIND, SmallJob, add_storage, small_job
from teams import Team

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

KILL = """
import os, pathlib, signal
for folder in pathlib.Path('/proc').glob('[0-9]*'):
    title = (folder / 'cmdline').read_bytes()
    # Not this program, whose text is its command line.
    if title.startswith(b'ray::') and b'RayTrainWorker' in title:
        os.kill(int(folder.name), signal.SIGKILL)
        print(folder.name)
"""

HOG = """
import pathlib, time
old, new = pathlib.Path('/sys/fs/cgroup/memory'), pathlib.Path('/sys/fs/cgroup')
folder, limit, usage, prefix = old, 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_'
if not (folder / limit).exists():
    folder, limit, usage, prefix = new, 'memory.max', 'memory.current', ''
def free():
    found = dict(line.split() for line in (folder / 'memory.stat').read_text().splitlines())
    cached = sum(int(found[f'{prefix}{name}_file']) for name in ('active', 'inactive'))
    return int((folder / limit).read_text()) - int((folder / usage).read_text()) + cached
held, deadline = [], time.monotonic() + 60
while time.monotonic() < deadline:
    if free() > 2**25:
        held.append(b'x' * 2**24)
    time.sleep(0.02)
"""
"""Fills the memory of its container up to its limit, and keeps it full for a minute."""


@pytest.fixture(scope="module")
def applied(team: Team) -> SmallJob:
    return SmallJob(team, add_storage(team), small_job("sturdy"))


@pytest.fixture
def job(applied: SmallJob) -> SmallJob:
    applied.wait_training()
    return applied


# ---- the job is not disturbed


def test_a_killed_operator_is_replaced_and_goes_on_telling(job: SmallJob, release: Release, faults: Faults):
    with faults.disturbs("operator pod killed", job) as told:
        replace_pods(release, "plinth", "app.kubernetes.io/component=operator", *FORCED)
        seen = job.steps()[-1]["step"]
        job.wait(lambda status: status["progress"]["step"] > seen, 120, "its status goes on")
    assert told["stepsLost"] == 0
    assert job.status()["phase"] == "Training"


def test_mlflow_may_go_and_come_and_has_every_step(job: SmallJob, release: Release, faults: Faults):
    with faults.disturbs("MLflow pod restarted", job) as told:
        replace_pods(release, "plinth-mlflow", "app.kubernetes.io/component=mlflow")
    assert told["stepsLost"] == 0
    last = job.steps()[-1]["step"]
    wait_until(lambda: last in logged_steps(release, job), 120, f"step {last} in MLflow")
    assert set(range(1, last + 1)) <= logged_steps(release, job)


def test_a_restarted_kuberay_leaves_training_alone(job: SmallJob, release: Release, faults: Faults):
    with faults.disturbs("KubeRay restarted", job) as told:
        selector = "app.kubernetes.io/name=kuberay"
        replace_pods(release, "kuberay-operator", selector, *FORCED, namespace=KUBERAY_NAMESPACE)
    assert told["stepsLost"] == 0


def test_a_restarted_kubelet_leaves_training_alone(job: SmallJob, node: Node, faults: Faults):
    with faults.disturbs("kubelet restarted, 15 s away", job) as told:
        node.stop_kubelet()
        time.sleep(15)
        node.start_kubelet()
        pod = job.team.pod(job.name, "worker")
        job.team.kubectl("wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=120s")
    assert told["stepsLost"] == 0


# ---- the attempt ends, and the next one goes on


def test_a_suspended_job_saves_and_goes_on_when_it_is_resumed(job: SmallJob, faults: Faults):
    with faults.ends_attempt("suspended, then resumed", job) as told:
        job.patch({"suspend": True})
        job.wait(lambda status: status["phase"] == "Suspended", 180, "it is suspended")
        wait_until(lambda: not job.team.pods(job.name), 180, "the end of its pods")
        job.patch({"suspend": False})
    assert told["reason"] == "Suspended"
    assert max(told["stepsLost"], told["stepsLostByStatus"]) <= 1


def test_a_worker_pod_that_is_deleted_with_grace_saves_first(job: SmallJob, faults: Faults):
    with faults.ends_attempt("worker pod deleted with grace", job) as told:
        job.delete_pod("worker")
    assert told["reason"] == "RayJobStopped"
    assert max(told["stepsLost"], told["stepsLostByStatus"]) <= 1


def test_a_worker_pod_that_is_deleted_by_force_saves_where_its_node_lives(job: SmallJob, faults: Faults):
    with faults.ends_attempt("worker pod deleted by force", job) as told:
        job.delete_pod("worker", *FORCED)
    # Only the API server forgets it at once: the kubelet ends it as its spec says, with the hook that saves.
    assert told["reason"] == "RayJobStopped"


def test_a_killed_training_process_costs_the_steps_since_the_checkpoint(job: SmallJob, faults: Faults):
    with faults.ends_attempt("training process killed", job) as told:
        assert job.run_in_worker(KILL).split()
    assert told["reason"] == "ContainerCrashed"


def test_a_container_without_memory_left_is_told_as_that(job: SmallJob, faults: Faults):
    with faults.ends_attempt("container out of memory", job) as told:
        # Whoever fills the memory may be killed for it as well.
        job.run_in_worker(HOG, check=False)
    assert told["reason"] == "HostOutOfMemory"


def test_it_was_one_job_and_one_run_all_the_time(job: SmallJob, release: Release):
    run = release.mlflow(f"runs/get?run_id={job.run_id()}")["run"]
    assert run["info"]["status"] == "RUNNING"
    assert {attempt["outcome"] for attempt in job.attempts()[:-1]} >= {"Suspended", "HostOutOfMemory"}
    job.team.kubectl("delete", KIND, job.name, "--wait=true")


def replace_pods(release: Release, deployment: str, selector: str, *flags: str, namespace: str = NAMESPACE) -> None:
    """Delete the pods of a Deployment of the platform, and wait until others are ready."""
    release.kubectl("delete", "pod", "--namespace", namespace, "--selector", selector, *flags)
    release.kubectl("rollout", "status", "--namespace", namespace, f"deployment/{deployment}", "--timeout=240s")


def logged_steps(release: Release, job: SmallJob) -> set[int]:
    """The steps that MLflow has; none while it is away."""
    try:
        return {int(point["step"]) for point in release.metric(job.run_id(), "train/loss")}
    except urllib.error.URLError:
        return set()
