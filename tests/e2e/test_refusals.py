"""What jobs that cannot run say within 20 seconds: image, Secret, claim, GPUs; and that they go on when it is mended.

All at once, since they wait more than they work. None gets as far as training.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.node import Node
from cluster.node_programs import NODE_NAME
from faults import Faults
from small_job import CORPUS, KIND, add_storage, small_job
from teams import Document, Team

pytestmark = pytest.mark.timeout(600)

HONEST_SECONDS = 20.0
MENDED_SECONDS = 120.0
NO_IMAGE = "registry.plinth.test/workloads:none"
GPUS = "nvidia.com/gpu"


@dataclass(frozen=True)
class Refusal:
    """A job that cannot run: what it asks for, and what its status must say of that."""

    spec: Document
    phase: str
    reason: str
    words: tuple[str, ...]


REFUSALS = {
    "no-image": Refusal({"image": NO_IMAGE}, "Starting", "ImagePullFailed", (NO_IMAGE, "pod no-image-", "check")),
    "no-secret": Refusal(
        {"env": [{"name": "HUB_TOKEN", "secretKeyRef": {"name": "hub", "key": "token"}}]},
        *("Starting", "SecretNotFound", ("Secret hub", "create it")),
    ),
    "no-claim": Refusal(
        {"volumes": [{"claimName": "late", "mountPath": "/late"}]},
        *("Pending", "VolumeNotFound", ("PersistentVolumeClaim late", "create it")),
    ),
    "no-gpus": Refusal(
        {"perWorker": {"cpus": "100m", "memory": "2Gi", "gpus": 2}},
        *("Starting", "Unschedulable", (f"Insufficient {GPUS}", "worker pod")),
    ),
}


@pytest.fixture(scope="module")
def refused(team: Team, faults: Faults) -> Iterator[dict[str, Document]]:
    """The jobs, applied; each with the first status that has a reason, and the seconds until that."""
    add_storage(team)
    team.apply(*(one_worker(name, refusal) for name, refusal in REFUSALS.items()))
    told: dict[str, Document] = {}
    applied = time.monotonic()
    while len(told) < len(REFUSALS) and time.monotonic() < applied + 3 * HONEST_SECONDS:
        for name in REFUSALS.keys() - told.keys():
            status = team.status(KIND, name)
            if status.get("reason"):
                told[name] = {**status, "seconds": round(time.monotonic() - applied, 1)}
        time.sleep(0.25)
    for name, status in told.items():
        faults.add(f"{name}: honest reason", reason=status["reason"], endKnownSeconds=status["seconds"])
    yield told
    team.kubectl("delete", KIND, *REFUSALS, "--wait=true", "--timeout=200s")


@pytest.fixture(scope="module")
def mended(team: Team, node: Node, refused: dict[str, Document]) -> Iterator[dict[str, float]]:
    """What was missing is there now; the seconds until each job had pods that run, and no reason any more."""
    assert refused.keys() == REFUSALS.keys()
    going: dict[str, float] = {}
    begun = time.monotonic()
    mend_image(team)
    mend_secret(team)
    mend_claim(team)
    offer_gpus(node, 2)
    while len(going) < len(REFUSALS) and time.monotonic() < begun + MENDED_SECONDS:
        for name in REFUSALS.keys() - going.keys():
            if goes_on(team, name):
                going[name] = round(time.monotonic() - begun, 1)
        time.sleep(0.5)
    yield going
    offer_gpus(node, None)


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_missing_is_told_within_twenty_seconds(refused: dict[str, Document], name: str):
    told, expected = refused[name], REFUSALS[name]
    assert (told["phase"], told["reason"]) == (expected.phase, expected.reason), told
    assert [word for word in expected.words if word not in told["message"]] == [], told["message"]
    assert told["seconds"] < HONEST_SECONDS


@pytest.mark.parametrize("name", REFUSALS)
def test_a_job_goes_on_when_what_was_missing_is_there(mended: dict[str, float], team: Team, name: str):
    assert name in mended, team.story(KIND, name)


def one_worker(name: str, refusal: Refusal) -> Document:
    """A job with one worker, of which four fit the node beside what an earlier test may have left to end."""
    compute = {"workers": 1, "perWorker": {"cpus": "50m", "memory": "2Gi"}, **refusal.spec}
    return small_job(name, compute=compute, data={"train": [{"uri": CORPUS}], "validation": None})


def goes_on(team: Team, name: str) -> bool:
    """Whether head and worker of the job have begun to run, and there is nothing to complain of."""
    status = team.status(KIND, name)
    begun = {pod["metadata"]["labels"].get("ray.io/node-type") for pod in team.pods(name) if has_begun(pod)}
    return begun >= {"head", "worker"} and status["phase"] in ("Starting", "Training") and not status.get("reason")


def has_begun(pod: Document) -> bool:
    """Whether a container of the pod runs, be it the one in which KubeRay lets workers wait for the head."""
    found = [*pod["status"].get("initContainerStatuses", ()), *pod["status"].get("containerStatuses", ())]
    return any("running" in one["state"] for one in found)


def mend_image(team: Team) -> None:
    """Only a suspended job may change its image once an attempt was made."""
    image: dict[str, Any] = {"compute": {"image": None}}
    for change in ({"suspend": True}, {**image, "suspend": False}):
        team.kubectl("patch", KIND, "no-image", "--type=merge", "--patch", json.dumps({"spec": change}))


def mend_secret(team: Team) -> None:
    """The Secret that the pods wait for."""
    team.kubectl("create", "secret", "generic", "hub", "--from-literal=token=t0ken")


def mend_claim(team: Team) -> None:
    """A volume and the claim on it."""
    team.volume("late")
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    team.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "late"}, "spec": spec})


def offer_gpus(node: Node, count: int | None) -> None:
    """GPUs on paper, for the scheduler; None takes them away."""
    gpus = {GPUS: None if count is None else str(count)}
    body = json.dumps({"status": {"capacity": gpus, "allocatable": gpus}}).encode()
    node.plane.request("PATCH", f"/api/v1/nodes/{NODE_NAME}/status", body, "application/merge-patch+json")
