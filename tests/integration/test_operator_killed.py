"""The operator killed (SIGKILL) before and after each of its writes: the end is that of an undisturbed life.

Every write of every life below has a namespace of its own, where a proxy holds that one write: before it reaches the
API server or MLflow, or after it was carried out and before the answer. Once all are held, one kill ends the operator
in the middle of all of them, and a new one goes on.
"""

import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.control_plane import wait_until
from cluster.faulty_proxy import Action, Request, Rule
from lives import CRASHED, SUCCEEDED, Runs, events_of, picture, tell_ray_jobs
from makers import pretrain_document, service_document
from namespaces import Document, Namespace
from operators import Disturbed, operator_behind_proxies

pytestmark = pytest.mark.integration

MODEL = {"uri": "models:/tiny/1"}
INGRESS = {"ingress": {"host": "tiny.example.com"}}
PASSED = {"gate": "Passed", "modelName": "tiny", "modelVersion": "3", "phase": "finished"}


@dataclass
class Place:
    """One namespace with its resource, and what its life needs."""

    cluster: Namespace
    runs: Runs
    document: Document
    made: Document = field(default_factory=dict)

    def create(self) -> None:
        self.made = self.cluster.create(self.document)

    def create_and_wait(self) -> None:
        self.create()
        self.cluster.wait_status(self.document, phase="Starting", seconds=90)

    def suspend(self, suspended: bool = True) -> None:
        self.cluster.merge(self.document, {"spec": {"suspend": suspended}})

    def create_and_suspend(self) -> None:
        self.create_and_wait()
        self.suspend()
        self.cluster.wait_status(self.document, phase="Suspended", seconds=90)
        wait_until(lambda: not self.cluster.ray_jobs(), 60, "the end of the RayJob")

    def succeed(self) -> None:
        self.runs.finish(self.made["metadata"]["uid"], **PASSED)
        tell_ray_jobs(self.cluster, SUCCEEDED)

    def crash(self) -> None:
        tell_ray_jobs(self.cluster, CRASHED)

    def delete(self) -> None:
        self.cluster.delete(self.document)

    def change_service(self) -> None:
        self.cluster.merge(self.document, {"spec": {"model": {"uri": "models:/tiny/2"}, "access": {"ingress": None}}})


@dataclass(frozen=True)
class Life:
    """What happens to a resource: `before` undisturbed, `then` with one of its writes held."""

    make: Callable[[], Document]
    before: Callable[[Place], None] | None
    then: Callable[[Place], None]


def job() -> Document:
    return pretrain_document()


def service() -> Document:
    return service_document(model=MODEL, access=INGRESS)


LIVES = {
    "a new job": Life(job, None, Place.create),
    "a job that is suspended": Life(job, Place.create_and_wait, Place.suspend),
    "a job that goes on": Life(job, Place.create_and_suspend, lambda place: place.suspend(False)),
    "a job that succeeds": Life(job, Place.create_and_wait, Place.succeed),
    "a job that fails": Life(job, Place.create_and_wait, Place.crash),
    "a job that is deleted": Life(job, Place.create_and_wait, Place.delete),
    "a new service": Life(service, None, Place.create),
    "a changed service": Life(service, Place.create_and_wait, Place.change_service),
}

STATUS = "jobs/tiny/status"
WRITES = {
    "a new job": {
        "its MLflow run": ("POST", "runs/create", ""),
        "its first status": ("PATCH", STATUS, ""),
        "its ConfigMap": ("POST", "/configmaps", ""),
        "its NetworkPolicy": ("POST", "/networkpolicies", ""),
        "its RayJob": ("POST", "/rayjobs", ""),
        "the status Starting": ("PATCH", STATUS, '"phase": ?"Starting"'),
        "its Event": ("POST", "/events", ""),
    },
    "a job that is suspended": {
        "the end of its RayJob": ("DELETE", "/rayjobs/", ""),
        "the status Suspended": ("PATCH", STATUS, '"phase": ?"Suspended"'),
    },
    "a job that goes on": {
        "its second ConfigMap": ("POST", "/configmaps", ""),
        "its second RayJob": ("POST", "/rayjobs", ""),
        "the status Starting": ("PATCH", STATUS, '"phase": ?"Starting"'),
    },
    "a job that succeeds": {"the status Succeeded": ("PATCH", STATUS, '"phase": ?"Succeeded"')},
    "a job that fails": {
        "the status Failed": ("PATCH", STATUS, '"phase": ?"Failed"'),
        "the end of its MLflow run": ("POST", "runs/update", "FAILED"),
    },
    "a job that is deleted": {"the end of its MLflow run": ("POST", "runs/update", "KILLED")},
    "a new service": {
        "its NetworkPolicy": ("POST", "/networkpolicies", ""),
        "its RayService": ("PATCH", "/rayservices/", ""),
        "its Ingress": ("PATCH", "/ingresses/", ""),
        "its status": ("PATCH", "modelservices/tiny/status", ""),
        "its Event": ("POST", "/events", ""),
    },
    "a changed service": {
        "its RayService": ("PATCH", "/rayservices/", ""),
        "the end of its Ingress": ("DELETE", "/ingresses/", ""),
    },
}
CASES = [(life, write) for life, writes in WRITES.items() for write in writes]


def rule_for(case: tuple[str, str], moment: Action, place: Place) -> Rule:
    """Holds one write; in vain if it is not all held within the 30 s that the operator gives a request."""
    life, write = case
    method, path, body = WRITES[life][write]
    if path.startswith("runs/"):
        # MLflow's paths name no namespace; its bodies name it, or the run.
        who = place.runs.of(place.made["metadata"]["uid"])[0]["info"]["run_id"] if place.made else place.cluster.name
        return Rule(moment, method, path, body=f"{who}(.|\n)*{body}", times=1)
    return Rule(moment, method, f"/namespaces/{place.cluster.name}/.*{path.lstrip('/')}", body=body, times=1)


def writes(disturbed: Disturbed) -> list[Request]:
    """What was written so far, Leases aside; MLflow's searches are POSTs too."""
    told = disturbed.api.writes() + disturbed.mlflow.writes()
    return [entry for entry in told if not re.search("leases|search", entry.path)]


def wait_quiet(disturbed: Disturbed) -> None:
    def is_quiet() -> bool:
        return time.monotonic() - max(entry.time for entry in writes(disturbed)) > 3

    wait_until(is_quiet, 120, "an operator that has nothing more to write")


def in_parallel(action: Callable[..., Any], *lists: Iterable[Any]) -> list[Any]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(action, *lists))


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory, control_plane, tracking):
    # A held request holds its worker.
    folder = tmp_path_factory.mktemp("operator")
    with operator_behind_proxies(folder, control_plane, tracking.uri, workers="128") as disturbed:
        yield disturbed


@pytest.fixture(scope="module")
def places(control_plane, tracking, disturbed):
    """Makes a namespace for each of some lives, and goes through what comes before."""
    names = []

    def make(life: str) -> Place:
        name = control_plane.create_namespace()
        names.append(name)
        cluster = Namespace(control_plane, name, disturbed.operator.log)
        cluster.claim("plinth")
        place = Place(cluster, Runs(tracking.uri), LIVES[life].make())
        before = LIVES[life].before
        if before is not None:
            before(place)
        return place

    yield lambda lives: in_parallel(make, lives)
    for name in names:
        control_plane.delete_namespace(name)


@pytest.fixture(scope="module")
def undisturbed(disturbed, places):
    """The end of every life that nothing disturbs."""
    twins = dict(zip(LIVES, places(LIVES), strict=True))
    for life, place in twins.items():
        LIVES[life].then(place)
    wait_quiet(disturbed)
    return {life: picture(place.cluster, place.made, place.runs) for life, place in twins.items()}


@pytest.fixture(scope="module", params=["hold", "hold_after"])
def survivors(request, disturbed, places, undisturbed):
    """Every case after its write was held, the operator killed, and another one has come to rest."""
    moment = request.param
    found = dict(zip(CASES, places(life for life, _ in CASES), strict=True))
    rules = {case: rule_for(case, moment, place) for case, place in found.items()}
    disturbed.api.rules = [rule for rule in rules.values() if "runs/" not in rule.path]
    disturbed.mlflow.rules = [rule for rule in rules.values() if "runs/" in rule.path]
    in_parallel(lambda case: LIVES[case[0]].then(found[case]), CASES)
    deadline = time.monotonic() + 25
    missed = [case for case in CASES if not rules[case].reached.wait(max(0.0, deadline - time.monotonic()))]
    assert not missed, disturbed.operator.log.read_text()[-3000:]
    disturbed.operator.kill()
    disturbed.operator.start()
    known = len(writes(disturbed))
    wait_until(lambda: len(writes(disturbed)) > known, 60, "the first write of the new operator")
    wait_quiet(disturbed)
    return found


@pytest.mark.parametrize("case", CASES, ids=map(": ".join, CASES))
def test_a_kill_at_any_write_changes_nothing(case, survivors, undisturbed):
    place, wanted = survivors[case], undisturbed[case[0]]
    with suppress(TimeoutError):
        wait_until(lambda: picture(place.cluster, place.made, place.runs) == wanted, 20, "the undisturbed end")
    assert picture(place.cluster, place.made, place.runs) == wanted
    # An Event that the kill has cut off is lost; none is told twice.
    told = events_of(place.cluster, place.made["metadata"]["uid"])
    assert len(told) == len(set(told))
