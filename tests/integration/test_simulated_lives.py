"""Whole lives against a simulated API server: a crash at any write, and random sequences of changes."""

import asyncio
import gc
import json
from collections.abc import Callable
from functools import partial
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lives import Runs
from makers import Document, merged, pretrain_document, service_document
from plinth_api.job import MUTABLE_FIELDS
from plinth_operator.constants import RAY_CLUSTER_LABEL, UID_LABEL
from plinth_operator.facts import Manifest
from plinth_operator.store import Key
from sequences import JOB_STEPS, PLURALS, SERVICE_STEPS, Children, job_problems, service_problems
from simulation import SETTINGS, Moment, World

Life = Callable[[World], None]
MOMENTS: tuple[Moment, ...] = ("before", "after")

INGRESS: Document = {"access": {"ingress": {"host": "tiny.example.com"}}}
CRASHED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "JobDeploymentStatusTransitionGrace"}


def job(world: World) -> None:
    world.create(pretrain_document())
    world.rest()


def suspended_and_resumed_job(world: World) -> None:
    job(world)
    for suspend in (True, False):
        world.change("PretrainJob", "tiny", {"suspend": suspend})
        world.rest()


def changed_job(world: World) -> None:
    job(world)
    world.change("PretrainJob", "tiny", {"suspend": True, "training": {"steps": 20}})
    world.rest()
    world.change("PretrainJob", "tiny", {"suspend": False})
    world.rest()


def job_without_its_children(world: World) -> None:
    job(world)
    for child in world.children("ConfigMap", "NetworkPolicy"):
        world.kube.remove(child["kind"], child["metadata"]["name"])
        world.rest()


def deleted_and_repeated_job(world: World) -> None:
    job(world)
    world.kube.remove("PretrainJob", "tiny")
    world.create(pretrain_document(training={"steps": 20}))
    world.rest()


def changed_service(world: World) -> None:
    world.create(service_document(model={"uri": "models:/tiny/1"}, **INGRESS))
    world.rest()
    world.change("ModelService", "tiny", {"model": {"uri": "models:/tiny/2"}, "access": {"ingress": None}})
    world.rest()


def moved_service(world: World) -> None:
    world.create(service_document(model={"uri": "models:/tiny/1"}, rollout={"clusterChange": "Recreate"}))
    world.rest()
    world.change("ModelService", "tiny", {"compute": {"image": "other:2"}})
    world.rest()


LIVES = (
    job,
    suspended_and_resumed_job,
    changed_job,
    job_without_its_children,
    deleted_and_repeated_job,
    changed_service,
    moved_service,
)


def picture(world: World) -> Document:
    """What there is in the end, without what a restart may change: uids, versions and times."""
    uids: dict[str, str] = {}
    for (kind, name), found in world.kube.objects.items():
        if kind in MAKERS:
            uids |= {found["metadata"]["uid"]: f"uid of {name}", found["metadata"]["uid"][:5]: f"start of {name}"}
    kinds = ("ConfigMap", "Ingress", "NetworkPolicy", "RayJob", "RayService", *MAKERS)
    text = json.dumps(
        {
            "objects": [without_times(found) for found in world.children(*kinds)],
            "runs": sorted(run.status for run in world.tracking.runs.values()),
            "created": world.tracking.num_created,
        }
    )
    for uid, word in uids.items():
        text = text.replace(uid, word)
    normalised: Document = json.loads(text)
    return normalised


def without_times(found: Manifest) -> Document:
    status = found.get("status", {})
    annotations = {key: value for key, value in found["metadata"].get("annotations", {}).items() if "hash" not in key}
    return {
        "kind": found["kind"],
        "name": found["metadata"]["name"],
        "annotations": annotations,
        "content": found.get("spec", found.get("data")),
        "status": {key: status.get(key) for key in ("phase", "reason", "tracking")},
        "attempts": [
            {key: attempt.get(key) for key in ("number", "rayJob", "outcome")} for attempt in status.get("attempts", ())
        ],
    }


@pytest.mark.parametrize("life", LIVES, ids=[life.__name__.replace("_", " ") for life in LIVES])
def test_a_crash_at_any_write_changes_nothing(life: Life):
    calm = World()
    life(calm)
    assert calm.num_restarts == 0
    wanted = picture(calm)
    for number in range(1, len(calm.kube.writes) + 1):
        for moment in MOMENTS:
            world = World()
            world.kube.crash_at = (number, moment)
            life(world)
            assert world.num_restarts == 1, (number, moment)
            assert picture(world) == wanted, (moment, calm.kube.writes[number - 1])


MAKERS: dict[str, Callable[[], Document]] = {
    "PretrainJob": pretrain_document,
    "ModelService": lambda: service_document(model={"uri": "models:/tiny/1"}),
}


class RunsOf:
    """The runs of a simulation, as `lives.Runs` gives them."""

    def __init__(self, world: World) -> None:
        self._runs = world.tracking.runs

    def of(self, uid: str) -> list[Document]:
        return [{"info": {"run_id": run.run_id}} for known, run in self._runs.items() if known == uid]

    def states(self, uid: str) -> list[str]:
        return [run.status for known, run in self._runs.items() if known == uid]


def problems_of(world: World, kind: str) -> list[str]:
    """What is not as the spec of the resource asks for."""
    mine: Children = {(PLURALS[child["kind"]], child["metadata"]["name"]): child for child in world.children(*PLURALS)}
    found = world.kube.objects[kind, "tiny"]
    problems = service_problems if kind == "ModelService" else job_problems
    return problems(found, mine, cast(Runs, RunsOf(world)), SETTINGS)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        pytest.param("PretrainJob", {"suspend": True}, id="a job is suspended"),
        pytest.param("PretrainJob", {"training": {"steps": 20}}, id="a job is to train longer"),
        pytest.param("PretrainJob", {"compute": {"workers": 2}}, id="a job is to have more workers"),
        pytest.param("ModelService", {"compute": {"image": "other:2"}}, id="a service changes its clusters"),
        pytest.param("ModelService", INGRESS, id="a service is opened"),
    ],
)
def test_a_change_of_mind_during_any_write_is_heard(kind: str, spec: Document):
    calm = World()
    calm.create(MAKERS[kind]())
    calm.rest()
    for number in range(1, len(calm.kube.writes) + 1):
        world = World()
        world.create(MAKERS[kind]())
        world.kube.meanwhile = (number, partial(world.change, kind, "tiny", spec))
        world.rest()
        assert problems_of(world, kind) == [], calm.kube.writes[number - 1]


LONGER: Document = {"training": {"steps": 20}}


def test_a_change_before_the_first_status_and_a_crash_at_any_write_end_in_the_last_spec():
    calm = World()
    job(calm)
    outcomes = set()
    for number in range(1, len(calm.kube.writes) + 1):
        changed = World()
        changed.create(pretrain_document())
        changed.kube.meanwhile = (number, partial(changed.change, "PretrainJob", "tiny", LONGER))
        changed.rest()
        for crash in range(number + 1, len(changed.kube.writes) + 1):
            for moment in MOMENTS:
                world = World()
                world.create(pretrain_document())
                world.kube.meanwhile = (number, partial(world.change, "PretrainJob", "tiny", LONGER))
                world.kube.crash_at = (crash, moment)
                world.rest()
                assert world.num_restarts == 1
                where = (calm.kube.writes[number - 1], moment, changed.kube.writes[crash - 1])
                assert problems_of(world, "PretrainJob") == [], where
                attempts = world.kube.objects["PretrainJob", "tiny"]["status"]["attempts"]
                outcomes.add(tuple(attempt.get("outcome") for attempt in attempts))
    # Nobody is blamed, and no restart is spent.
    assert outcomes == {(None,), ("SpecChanged", None)}


def test_a_preempted_attempt_has_its_end_when_the_next_one_runs():
    world = World()
    job(world)
    (ray_job,) = world.children("RayJob")
    record = json.dumps({"plinth": "failure", "reason": "Preempted", "message": "made room"})
    world.kube.put({**ray_job, "status": {**CRASHED, "message": record}})
    world.rest()
    attempts = world.kube.objects["PretrainJob", "tiny"]["status"]["attempts"]
    assert [(one["number"], one.get("outcome")) for one in attempts] == [(1, "Preempted"), (2, None)]


@pytest.mark.parametrize("changed", [True, False])
def test_a_spec_that_comes_with_the_answer_to_a_status_is_looked_at(changed: bool):
    world = World()
    world.create(MAKERS["ModelService"]())
    world.listen()
    (key,) = world.store.resources
    queue = world.tracking.queue
    while not queue.is_idle():
        queue.done(asyncio.run(queue.get()))
    if changed:
        # The watch tells of it later, when it is no news any more.
        world.kube.put(merged(world.kube.objects["ModelService", "tiny"], {"spec": INGRESS}))
    asyncio.run(world.reconciler.reconcile(key))
    assert "status ModelService" in world.kube.writes
    assert queue.is_idle() != changed


def take_step(world: World, kind: str, step: str) -> None:
    """What a user does; the API server refuses to change a job that runs."""
    known = (JOB_STEPS if kind == "PretrainJob" else SERVICE_STEPS)[step]
    if (kind, "tiny") not in world.kube.objects:
        world.create(MAKERS[kind]())
    found = world.kube.objects[kind, "tiny"]
    runs = found.get("status", {}).get("attempts") and not found["spec"].get("suspend")
    if known is None:
        world.kube.remove(kind, "tiny")
    elif kind == "ModelService" or not runs or known.keys() <= {*MUTABLE_FIELDS}:
        world.change(kind, "tiny", known)


@pytest.mark.parametrize(("kind", "steps"), [("PretrainJob", JOB_STEPS), ("ModelService", SERVICE_STEPS)])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_last_word_holds_whatever_was_said_before(kind: str, steps: Document, data: st.DataObject):
    world = World()
    moves = st.lists(st.sampled_from([*steps, "step", "step", "rest"]), min_size=1, max_size=10)
    world.kube.crash_at = (data.draw(st.integers(0, 30)), data.draw(st.sampled_from(["before", "after"])))
    for move in data.draw(moves):
        if move in ("step", "rest"):
            getattr(world, move)()
        else:
            take_step(world, kind, move)
    world.rest()
    found = world.kube.objects.get((kind, "tiny"))
    if found is None:
        assert world.children(*PLURALS) == []
        assert "RUNNING" not in [run.status for run in world.tracking.runs.values()]
        return
    assert problems_of(world, kind) == []
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"]
    others = [run.status for uid, run in world.tracking.runs.items() if uid != found["metadata"]["uid"]]
    assert set(others) <= {"KILLED"}


@pytest.mark.parametrize("has_head", [True, False])
def test_a_head_that_is_seen_late_is_not_taken_for_lost(has_head: bool):
    world = World()
    job(world)
    (ray_job,) = world.children("RayJob")
    uid = ray_job["metadata"]["labels"][UID_LABEL]
    labels = {UID_LABEL: uid, RAY_CLUSTER_LABEL: "a-cluster", "ray.io/node-type": "head"}
    head = {
        "kind": "Pod",
        "metadata": {"name": "head", "namespace": ray_job["metadata"]["namespace"], "labels": labels},
    }
    if has_head:
        world.kube.put({**head, "status": {"phase": "Running"}})
    status = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "rayClusterName": "a-cluster"}
    # The watch of pods is behind that of RayJobs.
    world.watcher.take("RayJob", "MODIFIED", world.kube.put({**ray_job, "status": status}))
    (key,) = world.store.resources
    for _ in range(2):
        asyncio.run(world.reconciler.reconcile(key))
    assert bool(world.children("RayJob")) == has_head


def test_nothing_is_kept_of_resources_that_are_gone():
    world = World()

    def keys_after(first: int, last: int) -> int:
        for number in range(first, last):
            name = f"churn-{number}"
            world.create(pretrain_document(name=name))
            for _ in range(2):
                world.listen()
                for key in list(world.store.resources):
                    asyncio.run(world.reconciler.reconcile(key))
            world.kube.remove("PretrainJob", name)
            world.listen()
        gc.collect()
        return sum(isinstance(found, Key) for found in gc.get_objects())

    # Each would leave two timers of the queue, and a few of those may lie there.
    few = keys_after(0, 40)
    assert keys_after(40, 120) < few + 80
