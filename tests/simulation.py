"""An API server, an MLflow and an operator in one process, for lives by the thousand and a crash at any write.

The watcher's lists, the store, the plans and the reconciler are the real ones. The API server keeps manifests in a
dictionary and collects at once what has lost its owner.
"""

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

from makers import merged
from plinth_operator.facts import Manifest, RunFacts
from plinth_operator.kube import Kube, KubeError
from plinth_operator.plan.plan import Plan
from plinth_operator.queue import WorkQueue
from plinth_operator.reconcile import Reconciler
from plinth_operator.settings import Settings
from plinth_operator.store import Key, Resource, Store
from plinth_operator.tracking import Tracking
from plinth_operator.watch import Watcher

SETTINGS = Settings(tracking_uri="http://mlflow", storage_claim="plinth")
NAMESPACE = "team-a"
MOST_PASSES = 200

Moment = Literal["before", "after"]


class Crash(Exception):
    """The operator is gone."""


class FakeKube:
    """The API server as `plinth_operator.kube` speaks to it."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Manifest] = {}
        self.writes: list[str] = []
        self.crash_at: tuple[int, Moment] | None = None
        self.meanwhile: tuple[int, Callable[[], None]] | None = None
        """What somebody else does while a write of this number is under way."""
        self._numbers = itertools.count(1)

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        found = self.objects.get((kind, name))
        return copy.deepcopy(found) if found else None

    async def serves(self, kind: str) -> bool:
        return kind != "Workload"

    async def list(self, kind: str, namespace: str = "", *, label_selector: str = "") -> AsyncIterator[Manifest]:
        for (found, _), manifest in list(self.objects.items()):
            if found == kind:
                yield copy.deepcopy(manifest)

    async def create(self, manifest: Manifest) -> Manifest:
        self._about_to("create", manifest["kind"])
        if (manifest["kind"], manifest["metadata"]["name"]) in self.objects:
            raise KubeError(409, "AlreadyExists", "it exists")
        made = self.put(manifest)
        self._have_done()
        return made

    async def apply(self, manifest: Manifest) -> Manifest:
        self._about_to("apply", manifest["kind"])
        known = self.objects.get((manifest["kind"], manifest["metadata"]["name"]))
        made = self.put(merged(known, manifest) if known else manifest)
        self._have_done()
        return made

    async def patch_status(
        self, kind: str, namespace: str, name: str, patch: Mapping[str, Any], *, uid: str
    ) -> Manifest:
        self._about_to("status", kind)
        known = self.objects.get((kind, name))
        if known is None:
            raise KubeError(404, "NotFound", "it is gone")
        if known["metadata"]["uid"] != uid:
            raise KubeError(409, "Conflict", "it is another one")
        made = self.put({**known, "status": merged(known.get("status", {}), patch)})
        self._have_done()
        return made

    async def delete(self, kind: str, namespace: str, name: str, *, uid: str) -> None:
        self._about_to("delete", kind)
        found = self.objects.get((kind, name))
        if found is not None and found["metadata"]["uid"] == uid:
            self.remove(kind, name)
        self._have_done()

    def put(self, manifest: Manifest) -> Manifest:
        """What somebody else writes; a changed spec is a new generation."""
        key = (manifest["kind"], manifest["metadata"]["name"])
        known, made = self.objects.get(key), copy.deepcopy(manifest)
        meta = made["metadata"]
        number = next(self._numbers)
        meta["resourceVersion"] = str(number)
        meta["uid"] = known["metadata"]["uid"] if known else f"{number:05}-uid"
        meta["creationTimestamp"] = "2026-03-01T12:00:00Z"
        changed = known is not None and known.get("spec") != made.get("spec")
        meta["generation"] = (known["metadata"]["generation"] if known else 1) + changed
        self.objects[key] = made
        return copy.deepcopy(made)

    def remove(self, kind: str, name: str) -> None:
        """Delete an object, and what it owns."""
        uid = self.objects.pop((kind, name))["metadata"]["uid"]
        for other, manifest in list(self.objects.items()):
            if any(owner["uid"] == uid for owner in manifest["metadata"].get("ownerReferences", ())):
                del self.objects[other]

    def _about_to(self, verb: str, kind: str) -> None:
        self.writes.append(f"{verb} {kind}")
        if self.crash_at == (len(self.writes), "before"):
            raise Crash

    def _have_done(self) -> None:
        if self.meanwhile is not None and self.meanwhile[0] == len(self.writes):
            self.meanwhile[1]()
        if self.crash_at == (len(self.writes), "after"):
            raise Crash


class FakeTracking:
    """Creates a run at once where one is wanted; runs outlive the operator and are found again by uid."""

    def __init__(self) -> None:
        self.runs: dict[str, RunFacts] = {}
        self.num_created = 0
        self.store = Store()
        self.queue: WorkQueue[Key] = WorkQueue(lambda: 0.0)

    def want(self, key: Key, uid: str, plan: Plan, run: RunFacts | None) -> None:
        if plan.want_run and uid not in self.runs:
            self.num_created += 1
            self.runs[uid] = RunFacts(f"run-of-{uid}", "1", status="RUNNING")
            self.store.resources[key].run = self.runs[uid]
            self.queue.add(key)

    def abandon(self, key: Key, resource: Resource) -> None:
        if resource.run is not None:
            self._kill(resource.uid)

    def adopt(self) -> None:
        """What a new operator does first: runs find their resources again, those without one are ended."""
        for uid, run in self.runs.items():
            key = self.store.key_of(uid)
            if key is not None:
                self.store.resources[key].run = run
            elif run.status == "RUNNING":
                self._kill(uid)

    def _kill(self, uid: str) -> None:
        self.runs[uid] = RunFacts(f"run-of-{uid}", "1", status="KILLED")


class World:
    """A cluster with an operator, whose time passes only when `rest` is called."""

    def __init__(self) -> None:
        self.kube, self.tracking = FakeKube(), FakeTracking()
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)
        claim = {"name": "plinth", "namespace": NAMESPACE}
        spec = {"accessModes": ["ReadWriteMany"]}
        self.kube.put({"kind": "PersistentVolumeClaim", "metadata": claim, "spec": spec})
        self.num_restarts = 0
        self._start()

    def _start(self) -> None:
        """A new operator: it knows what the API server and MLflow know."""
        self.store = Store()
        queue: WorkQueue[Key] = WorkQueue(lambda: 0.0)
        self.tracking.store, self.tracking.queue = self.store, queue
        kube, tracking = cast(Kube, self.kube), cast(Tracking, self.tracking)
        self.watcher = Watcher(kube, self.store, queue, tracking, namespace="", resync_seconds=300.0)
        self.reconciler = Reconciler(kube, self.store, queue, tracking, settings=SETTINGS, now=lambda: self.now)
        self.listen()
        self.tracking.adopt()

    def listen(self) -> None:
        """What lists and watches would tell."""
        asyncio.run(self.watcher.list_all())

    def create(self, document: Manifest) -> None:
        """What a user applies."""
        self.kube.put({**document, "metadata": {**document["metadata"], "namespace": NAMESPACE}})

    def change(self, kind: str, name: str, spec: Mapping[str, Any]) -> None:
        """What a user merges into a spec; the watch tells of it at once."""
        changed = self.kube.put(merged(self.kube.objects[kind, name], {"spec": spec}))
        self.watcher.take(kind, "MODIFIED", changed)

    def step(self) -> None:
        """One pass over every resource, a crash and the restart that follows included."""
        self.listen()
        for key in list(self.store.resources):
            try:
                asyncio.run(self.reconciler.reconcile(key))
            except Crash:
                self.num_restarts += 1
                self._start()
                return
            except KubeError as error:
                if error.reason not in ("Conflict", "AlreadyExists"):
                    raise

    def rest(self) -> None:
        """Pass after pass, a minute each, until nothing is written any more."""
        for _ in range(MOST_PASSES):
            known, self.now = len(self.kube.writes), self.now + timedelta(minutes=1)
            restarts = self.num_restarts
            self.step()
            if len(self.kube.writes) == known and self.num_restarts == restarts:
                return
        raise AssertionError(f"it never comes to rest: {self.kube.writes[-10:]}")

    def children(self, *kinds: str) -> list[Manifest]:
        """The objects of some kinds, by name."""
        return [found for (kind, _), found in sorted(self.kube.objects.items()) if kind in kinds]
