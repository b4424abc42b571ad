"""Random lives of resources: sequences of what people do to a spec, and the check that the last word holds.

The sequences of a batch run side by side, each on a resource of its own; some steps follow at once on the one before,
some after a while, so that the operator is met in every state.
"""

import time
import urllib.error
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from cluster.control_plane import wait_until
from lives import CHILDREN, Runs
from makers import Document, pretrain_document, service_document
from namespaces import Namespace
from plinth_api.model_service import ModelService
from plinth_api.parse import parse_resource
from plinth_api.resolve import resolve_serve_run, resolve_train_run
from plinth_operator.constants import HASH_ANNOTATION, SPEC_HASH_ANNOTATION
from plinth_operator.plan.children import job_children, service_children
from plinth_operator.plan.drift import holds
from plinth_operator.plan.rayjob import attempt_spec_hash
from plinth_operator.plan.run_config import resolve_settings_for
from plinth_operator.settings import Settings

SETTLE_SECONDS = 120
JOB_STEPS: dict[str, Document | None] = {
    "suspend": {"suspend": True},
    "resume": {"suspend": False},
    "train longer": {"training": {"steps": 20}},
    "train shorter": {"training": {"steps": 5}},
    "more workers": {"compute": {"workers": 2}},
    "allow restarts": {"restart": {"maxRestarts": 7}},
    "delete": None,
    "wait": {},
}
SERVICE_STEPS: dict[str, Document | None] = {
    "next version": {"model": {"uri": "models:/tiny/2"}},
    "version before": {"model": {"uri": "models:/tiny/1"}},
    "scale out": {"scaling": {"minReplicas": 2, "maxReplicas": 4}},
    "scale in": {"scaling": {"minReplicas": 1, "maxReplicas": 1}},
    "other compute": {"compute": {"perReplica": {"cpus": 2, "memory": "3Gi"}}},
    "other image": {"compute": {"image": "other:2"}},
    "recreate clusters": {"rollout": {"clusterChange": "Recreate"}},
    "open to the world": {"access": {"ingress": {"host": "tiny.example.com"}}},
    "close": {"access": {"ingress": None}},
    "delete": None,
    "wait": {},
}
PLURALS = {
    "ConfigMap": "configmaps",
    "Ingress": "ingresses",
    "NetworkPolicy": "networkpolicies",
    "RayJob": "rayjobs",
    "RayService": "rayservices",
}
Life = tuple[str, Sequence[tuple[str, float]]]


Children = dict[tuple[str, str], Document]


def sequences() -> st.SearchStrategy[Life]:
    """A kind, and steps with the seconds after each."""
    pauses = st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.5])
    job = st.lists(st.tuples(st.sampled_from(list(JOB_STEPS)), pauses), min_size=2, max_size=7)
    service = st.lists(st.tuples(st.sampled_from(list(SERVICE_STEPS)), pauses), min_size=2, max_size=7)
    return st.one_of(st.tuples(st.just("PretrainJob"), job), st.tuples(st.just("ModelService"), service))


@dataclass
class Player:
    """Plays one sequence on one resource; a step on a resource that is not there creates it first."""

    cluster: Namespace
    name: str
    kind: str
    uids: list[str] = field(default_factory=list)
    exists: bool = False

    def document(self) -> Document:
        """The resource as it is created."""
        if self.kind == "ModelService":
            return service_document(name=self.name, model={"uri": "models:/tiny/1"})
        return pretrain_document(name=self.name)

    def play(self, steps: Sequence[tuple[str, float]]) -> None:
        """All steps, and no wait for what comes of them."""
        known = SERVICE_STEPS if self.kind == "ModelService" else JOB_STEPS
        for step, pause in steps:
            if not self.exists:
                self.uids.append(self.cluster.create(self.document())["metadata"]["uid"])
                self.exists = True
            change = known[step]
            if change is None:
                self.cluster.delete(self.document())
                self.exists = False
            elif change:
                # What may not change while an attempt runs is refused: then the spec before is the last word.
                with suppress(urllib.error.HTTPError):
                    self.cluster.merge(self.document(), {"spec": change})
            time.sleep(pause)


def play_all(batch: Sequence[Life], cluster: Namespace, prefix: str) -> list[Player]:
    """Play the sequences of a batch side by side."""
    players = [Player(cluster, f"{prefix}-{number}", kind) for number, (kind, _) in enumerate(batch)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda player, item: player.play(item[1]), players, batch))
    return players


def assert_last_word_holds(player: Player, runs: Runs, settings: Settings) -> None:
    """Wait until everything is as the last spec asks for, and tell what is not."""
    problems: list[str] = []

    def is_right() -> bool:
        problems[:] = _problems(player, runs, settings)
        return not problems

    try:
        wait_until(is_right, SETTLE_SECONDS, "the last spec")
    except TimeoutError:
        told = f"{player.kind} {player.name}: {problems}\n{player.cluster.end_of_log()}"
        raise AssertionError(told) from None


def _problems(player: Player, runs: Runs, settings: Settings) -> list[str]:
    gone = player.uids[:-1] if player.exists else player.uids
    children = _children(player.cluster)
    problems = [f"left of {uid}: {name}" for uid in gone for name in children.get(uid, ())]
    problems += [f"runs of {uid}: {states}" for uid in gone if "RUNNING" in (states := runs.states(uid))]
    if not player.exists:
        return problems
    found = player.cluster.get(player.document())
    status = found.get("status", {})
    if status.get("observedGeneration") != found["metadata"]["generation"]:
        problems.append(f"the status is of generation {status.get('observedGeneration')}")
    mine = children.get(player.uids[-1], {})
    check: Callable[..., list[str]] = service_problems if player.kind == "ModelService" else job_problems
    return problems + check(found, mine, runs, settings)


def _children(cluster: Namespace) -> dict[str, Children]:
    """Children by the uid of their owner, by plural and name."""
    found: dict[str, Children] = {}
    for group, plural in CHILDREN:
        for item in cluster.items(group, plural):
            for owner in item["metadata"].get("ownerReferences", ()):
                found.setdefault(owner["uid"], {})[plural, item["metadata"]["name"]] = item
    return found


def job_problems(found: Document, mine: Children, runs: Runs, settings: Settings) -> list[str]:
    """What is not as the spec of a job asks for, given its children by plural and name."""
    status, uid = found.get("status", {}), found["metadata"]["uid"]
    ray_jobs = [item for (plural, _), item in mine.items() if plural == "rayjobs"]
    if found["spec"].get("suspend"):
        problems = [] if status.get("phase") == "Suspended" else [f"phase {status.get('phase')}, not Suspended"]
        return problems + [f"RayJob {item['metadata']['name']} of a suspended job" for item in ray_jobs]
    problems = [] if status.get("phase") == "Starting" else [f"phase {status.get('phase')}, not Starting"]
    attempts = status.get("attempts", [])
    if [attempt["number"] for attempt in attempts] != list(range(1, len(attempts) + 1)):
        problems.append(f"attempts {attempts}")
    if len(ray_jobs) != 1 or not attempts:
        return [*problems, f"{len(ray_jobs)} RayJobs, {len(attempts)} attempts"]
    (ray_job,) = ray_jobs
    meta = ray_job["metadata"]
    if meta["name"] != attempts[-1]["rayJob"]:
        problems.append(f"RayJob {meta['name']} is not of the last attempt {attempts[-1]}")
    problems += _attempt_problems(found, meta["name"], mine, settings)
    if [run["info"]["run_id"] for run in runs.of(uid)] != [status.get("tracking", {}).get("runId")]:
        problems.append(f"runs {runs.states(uid)}")
    return problems


def _attempt_problems(found: Document, name: str, mine: Children, settings: Settings) -> list[str]:
    """What of the children of the last attempt is not as the spec of now would make it."""
    job: Any = parse_resource({**found, "status": None})
    run_id = found["status"].get("tracking", {}).get("runId")
    document = resolve_train_run(job, resolve_settings_for(job, settings, run_id), {})
    attempt = found["status"]["attempts"][-1]["number"]
    problems = []
    for wanted in job_children(job, document, attempt=attempt, settings=settings):
        made = mine.get((PLURALS[wanted["kind"]], wanted["metadata"]["name"]))
        if made is None:
            problems.append(f"no {wanted['kind']} {wanted['metadata']['name']}")
        elif made.get("data") != wanted.get("data") or not holds(made.get("spec", {}), wanted.get("spec", {})):
            problems.append(f"{wanted['kind']} {name} is of an older spec")
    hash_of_spec = mine["rayjobs", name]["metadata"]["annotations"][SPEC_HASH_ANNOTATION]
    return problems if hash_of_spec == attempt_spec_hash(job) else [*problems, f"RayJob {name} has another hash"]


def service_problems(found: Document, mine: Children, _: Runs, settings: Settings) -> list[str]:
    """The same of a service."""
    service = parse_resource({**found, "status": None})
    assert isinstance(service, ModelService)
    document = resolve_serve_run(service, resolve_settings_for(service, settings, None), {})
    problems = []
    names = set()
    for wanted in service_children(service, document, settings=settings):
        name = (PLURALS[wanted["kind"]], wanted["metadata"]["name"])
        names.add(name)
        made = mine.get(name)
        hash_of = wanted["metadata"]["annotations"][HASH_ANNOTATION]
        if made is None or made["metadata"]["annotations"].get(HASH_ANNOTATION) != hash_of:
            problems.append(f"{name} is missing, or of an older spec")
        elif not holds(made["spec"], wanted["spec"]):
            problems.append(f"{name} is not what it says it is")
    return problems + [f"{name} is there" for name in mine.keys() - names]
