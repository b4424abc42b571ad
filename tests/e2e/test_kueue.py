"""Kueue with a small quota: a job waits for it, gets it, makes room after a checkpoint, and goes on from there.

One story in the order of its tests. A batch Job holds a part of the queue all the time, so that a job can be small
enough for the queue and still have to wait.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.addons import install_kueue
from cluster.control_plane import wait_until
from cluster.images import image
from cluster.manifests import documents
from faults import Faults
from plinth_release import Release
from repeating import Repeating
from small_job import FIRST_STEP_SECONDS, KIND, SAVE_EVERY, SmallJob, add_storage, small_job
from teams import Document, Team
from timeline import Timeline

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
QUEUES = ROOT / "examples" / "kueue"
SHAPES = ROOT / ".plinth" / "e2e" / "workloads.json"
"""What Kueue wrote, for tests/unit/plinth_operator/status/recorded."""

PATIENT, URGENT = "patient", "urgent"
QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
HELD, NEEDED, ALL = "300m", "700m", "1"
"""CPUs of the batch Job, of one of our jobs (head 200m, two workers of 200m, submitter 100m), and of both."""

STEPS = 25 * SAVE_EVERY
QUEUE_SECONDS, TRAIN_SECONDS, GRACE_SECONDS = 60, 400, 180


def set_quota(team: Team, cpus: str) -> None:
    """The queues of the example with this many CPUs in all."""
    queues = documents(QUEUES / "cluster-queue.yaml")
    (queue,) = (found for found in queues if found["kind"] == "ClusterQueue")
    resources = queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"]
    next(found for found in resources if found["name"] == "cpu")["nominalQuota"] = cpus
    team.node.plane.apply(queues)


def holder() -> Document:
    """A Job that does nothing, and gives way to nobody."""
    security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {
        "name": "holder",
        "image": image("pause"),
        "imagePullPolicy": "Never",
        "resources": {"requests": {"cpu": HELD, "memory": "16Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    labels = {QUEUE_LABEL: "training", PRIORITY_LABEL: "urgent"}
    pod = {"restartPolicy": "Never", "securityContext": security, "containers": [container]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "holder", "labels": labels},
        "spec": {"suspend": True, "template": {"spec": pod}},
    }


def job(name: str, priority: str, *, steps: int) -> Document:
    """A small job for the queue; a single failure would be its end."""
    training = {"steps": steps, "sequenceLength": 256, "globalBatchSize": 8, "learningRate": 1e-3}
    compute = {"workers": 2, "perWorker": {"cpus": "200m", "memory": "2Gi"}, "queueName": "training"}
    document = small_job(name, training=training, compute=compute, restart={"maxRestarts": 0})
    document["metadata"]["labels"] = {PRIORITY_LABEL: priority}
    return document


class Workloads(Repeating):
    """Every shape that Kueue gives to the Workloads of our jobs, in the order of their appearance."""

    pause_seconds = 0.1

    def __init__(self, team: Team) -> None:
        self._path = f"/apis/kueue.x-k8s.io/v1beta1/namespaces/{team.name}/workloads"
        self._plane = team.node.plane
        self.shapes: list[Document] = []

    def once(self) -> None:
        """Keep what is new."""
        for found in self._plane.request("GET", self._path)["items"]:
            shape = shape_of(found)
            if shape not in self.shapes:
                self.shapes.append(shape)


def shape_of(workload: Document) -> Document:
    """What of a Workload is read, and its metadata as a reader finds it."""
    metadata = {key: workload["metadata"][key] for key in ("name", "namespace", "uid")}
    owners = [{key: owner[key] for key in ("kind", "name")} for owner in workload["metadata"]["ownerReferences"]]
    conditions = sorted(workload.get("status", {}).get("conditions", ()), key=lambda found: str(found["type"]))
    return {
        "apiVersion": workload["apiVersion"],
        "kind": workload["kind"],
        "metadata": {**metadata, "ownerReferences": owners},
        "spec": {key: workload["spec"][key] for key in ("queueName", "active", "priority") if key in workload["spec"]},
        "status": {"conditions": conditions},
    }


@pytest.fixture(scope="module")
def storage(release: Release, team: Team, folder: Path) -> Iterator[Path]:
    """Kueue, a quota for all, and data for the team's jobs; the folder of the checkpoints."""
    install_kueue(release.node.plane, folder / "kueue")
    set_quota(team, HELD)
    checkpoints = add_storage(team)
    with Timeline(team) as timeline, Workloads(team) as workloads:
        yield checkpoints
    print(f"\n{timeline.table()}")  # noqa: T201
    SHAPES.parent.mkdir(parents=True, exist_ok=True)
    SHAPES.write_text(json.dumps(workloads.shapes, indent=1) + "\n")


@pytest.fixture(scope="module")
def patient(team: Team, storage: Path) -> SmallJob:
    """A job for a queue that its team does not have yet."""
    return SmallJob(team, storage, job(PATIENT, "background", steps=STEPS))


@pytest.fixture(scope="module")
def without_queue(patient: SmallJob) -> Document:
    """Its status there."""
    return wait_reason(patient, "QueueNotFound")


@pytest.fixture(scope="module")
def too_large(team: Team, patient: SmallJob, without_queue: Document) -> Document:
    """Its status in a queue that is smaller than it, and full."""
    team.kubectl("apply", "-f", str(QUEUES / "local-queue.yaml"))
    team.apply(holder())
    wait_until(lambda: team.get("job", "holder")["status"].get("active"), QUEUE_SECONDS, "the holder's admission")
    return wait_reason(patient, "ExceedsQuota")


@pytest.fixture(scope="module")
def waiting(team: Team, patient: SmallJob, too_large: Document) -> Document:
    """Its status in a queue that has room for it, and not now."""
    set_quota(team, NEEDED)
    return wait_reason(patient, "WaitingForQuota")


@pytest.fixture(scope="module")
def deactivated(team: Team, patient: SmallJob, waiting: Document) -> SimpleNamespace:
    """Its status while somebody has taken it out of the queue, and when it is back."""
    (workload,) = (
        found["metadata"]["name"] for found in team.items("workloads") if f"-{PATIENT}-" in found["metadata"]["name"]
    )
    patch = ("patch", "workload", workload, "--type=merge", "--patch")
    team.kubectl(*patch, '{"spec":{"active":false}}')
    out = wait_reason(patient, "DeactivatedByKueue")
    team.kubectl(*patch, '{"spec":{"active":true}}')
    return SimpleNamespace(out=out, back=wait_reason(patient, "WaitingForQuota"))


@pytest.fixture(scope="module")
def admitted(team: Team, patient: SmallJob, deactivated: SimpleNamespace, faults: Faults) -> Document:
    """Its status when there is room, and it trains."""
    set_quota(team, ALL)
    raised = time.time()
    wait_until(lambda: not is_held(team, PATIENT), QUEUE_SECONDS, "Kueue to start the RayJob")
    started = time.time()
    status = patient.wait_training()
    faults.add(
        "waits in a queue whose quota is raised (Kueue)",
        reason=deactivated.back["reason"],
        endKnownSeconds=round(started - raised, 1),
        nextStepSeconds=round(patient.steps()[0]["time"] - raised, 1),
    )
    return status


@pytest.fixture(scope="module")
def preempted(team: Team, patient: SmallJob, admitted: Document, storage: Path, faults: Faults) -> SimpleNamespace:
    """The job after a more urgent one came, that one's end, and what the preemption cost."""
    saved = patient.wait(lambda status: status.get("checkpoint"), TRAIN_SECONDS, "a checkpoint")
    with faults.ends_attempt("preempted by a more urgent job (Kueue)", patient) as cost:
        at = time.time()
        urgent = SmallJob(team, storage, job(URGENT, "urgent", steps=SAVE_EVERY))
        held = patient.wait(lambda status: status["phase"] == "Queued", QUEUE_SECONDS, "its preemption")
        wait_until(lambda: not team.pods(PATIENT), GRACE_SECONDS, "the end of the preempted pods")
        gone = time.time()
        ended = team.wait_phase(KIND, URGENT, "Succeeded", FIRST_STEP_SECONDS + TRAIN_SECONDS)
        free = time.time()
        wait_until(lambda: not is_held(team, PATIENT), QUEUE_SECONDS, "Kueue to start the RayJob again")
        again = time.time()
    faults.add(
        "the more urgent job meanwhile",
        podsGoneSeconds=round(gone - at, 1),
        nextStepSeconds=round(urgent.steps()[0]["time"] - at, 1),
        endKnownSeconds=round(free - at, 1),
        admittedAgainSeconds=round(again - free, 1),
    )
    return SimpleNamespace(saved=saved["checkpoint"]["step"], held=held, urgent=ended, cost=cost)


def wait_reason(found: SmallJob, reason: str) -> Document:
    """Wait until a job gives a reason; its status."""
    return found.wait(lambda status: status.get("reason") == reason, QUEUE_SECONDS, reason)


def is_held(team: Team, name: str) -> bool:
    """Whether Kueue holds the one RayJob of a job."""
    (found,) = team.items("rayjobs", f"plinth.dev/name={name}")
    return bool(found["spec"].get("suspend"))


def condition(status: Document, kind: str) -> Any:
    """The status of a condition."""
    return next(found["status"] for found in status["conditions"] if found["type"] == kind)


def test_a_job_for_a_queue_that_does_not_exist_says_so(without_queue: Document):
    assert without_queue["phase"] == "Queued"
    assert "LocalQueue training doesn't exist" in without_queue["message"]


def test_a_job_that_is_larger_than_its_queue_says_so(team: Team, too_large: Document):
    assert too_large["phase"] == "Queued"
    assert "the job is larger than its queue can ever take" in too_large["message"]
    assert f"> maximum capacity ({HELD})" in too_large["message"]
    assert team.pods(PATIENT) == []


def test_a_job_waits_while_others_have_the_quota(team: Team, waiting: Document):
    assert waiting["phase"] == "Queued"
    assert f"{HELD} more needed" in waiting["message"]
    assert condition(waiting, "Admitted") == "False"
    assert (is_held(team, PATIENT), team.pods(PATIENT)) == (True, [])
    (attempt,) = waiting["attempts"]
    assert "startedAt" not in attempt


def test_a_job_that_was_taken_out_of_its_queue_says_so(deactivated: SimpleNamespace):
    assert deactivated.out["phase"] == "Queued"
    assert "kubectl describe workload" in deactivated.out["message"]
    assert [attempt["number"] for attempt in deactivated.back["attempts"]] == [1]


def test_more_quota_starts_it(admitted: Document):
    assert (admitted["phase"], admitted.get("reason", "")) == ("Training", "")
    assert condition(admitted, "Admitted") == "True"


def test_a_more_urgent_job_takes_its_machines(preempted: SimpleNamespace):
    assert preempted.held["reason"] == "WaitingForQuota"
    assert "Kueue took back the quota (Preempted)" in preempted.held["message"]
    (attempt,) = preempted.held["attempts"]
    assert attempt["outcome"] == "Preempted"
    assert attempt["lastStep"] >= SAVE_EVERY
    assert condition(preempted.held, "Admitted") == "False"
    assert preempted.urgent["progress"]["step"] == SAVE_EVERY


def test_the_preempted_job_goes_on_from_its_checkpoint(team: Team, patient: SmallJob, preempted: SimpleNamespace):
    status = team.wait_phase(KIND, PATIENT, "Succeeded", TRAIN_SECONDS)
    first, second = status["attempts"]
    assert (first["outcome"], second["outcome"]) == ("Preempted", "Succeeded")
    assert first["rayJob"] == second["rayJob"]
    assert second["fromStep"] >= preempted.saved >= SAVE_EVERY
    assert preempted.cost["stepsLost"] == first["lostSteps"]
    assert {event["step"] for event in patient.steps()} == set(range(1, STEPS + 1))
