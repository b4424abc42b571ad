"""kopf as the watcher, and nothing else: its events go into the store, and the keys they concern into the queue.

kopf's own bookkeeping (annotations, finalizers, diffs, events) is off. Kinds that are not served yet are watched from
the moment they are.
"""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from plinth_operator.constants import MANAGED_BY_LABEL, UID_LABEL
from plinth_operator.facts import Manifest
from plinth_operator.kube import APIS, Kube, KubeError
from plinth_operator.queue import WorkQueue
from plinth_operator.status.facts import facts_from
from plinth_operator.store import Key, Store
from plinth_operator.tracking import Tracking

logger = logging.getLogger(__name__)

RESOURCES = ("PretrainJob", "FineTuneJob", "ModelService")
CORE = ("ConfigMap", "NetworkPolicy", "Ingress", "PersistentVolumeClaim", "Pod")
RAY = ("RayCluster", "RayJob", "RayService")
KUEUE = ("Workload",)

_OURS = f"{MANAGED_BY_LABEL}=plinth"
SELECTORS: Mapping[str, str] = {
    "ConfigMap": _OURS,
    "NetworkPolicy": _OURS,
    "Ingress": _OURS,
    "Pod": UID_LABEL,
    "RayJob": UID_LABEL,
    "RayService": UID_LABEL,
    "RayCluster": "ray.io/originated-from-crd",
}
"""What the API server sends of each kind; all of it where there is no entry."""

_PRESENCE_SECONDS = 5.0
_SILENT_SECONDS = 30.0
_TOKEN_SECONDS = 300


class _NoDiffs(kopf.DiffBaseStorage):
    """kopf would copy every object to compare it with its last form, which nobody asks for."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class Watcher:
    """Lists and watches; `listed` is set when everything that is served has been listed once."""

    def __init__(self, kube: Kube, store: Store, queue: WorkQueue[Key], tracking: Tracking, namespace: str) -> None:
        """Take where events go to, and the one namespace that is served (empty for all)."""
        self._kube = kube
        self._store = store
        self._queue = queue
        self._tracking = tracking
        self._namespace = namespace
        self._served: set[str] = {*CORE, *RESOURCES}
        self.silent: set[str] = set()
        """Kinds of which the last list knew what the watch had not told for a while."""
        self.listed_at: datetime | None = None

    async def list_all(self) -> None:
        """List every kind that is served, children before their owners, and forget what is gone."""
        for kind in (*RAY, *KUEUE):
            if await self._kube.serves(kind):
                self._served.add(kind)
            else:
                self._served.discard(kind)
        self._store.kuberay = all(kind in self._served for kind in RAY)
        for kind in (*CORE, *KUEUE, *RAY, *RESOURCES):
            if kind in self._served:
                await self._list(kind)
        self.listed_at = datetime.now(UTC)
        for key in list(self._store.resources):
            self._queue.add(key)

    async def _list(self, kind: str) -> None:
        found: set[tuple[str, str]] = set()
        known = self._store.versions(kind)
        silent = False
        async for manifest in self._kube.list(kind, self._namespace, label_selector=SELECTORS.get(kind, "")):
            meta = manifest["metadata"]
            identity = (meta["namespace"], meta["name"])
            found.add(identity)
            missed = self.listed_at is not None and known.get(identity, 0) < int(meta["resourceVersion"])
            silent = silent or (missed and _is_old_news(meta))
            self._take(kind, "MODIFIED", manifest)
        for namespace, name in known.keys() - found:
            self._drop(kind, namespace, name, "")
        (self.silent.add if silent else self.silent.discard)(kind)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch((*CORE, *RESOURCES)))
            for kinds in (RAY, KUEUE):
                group.create_task(self._watch_when_served(kinds))

    async def _watch_when_served(self, kinds: tuple[str, ...]) -> None:
        while True:
            while not await self._all_served(kinds):
                await asyncio.sleep(_PRESENCE_SECONDS)
            if not set(kinds) <= self._served:
                logger.info("now served: %s", ", ".join(kinds))
                await self.list_all()
            stop = asyncio.Event()
            watching = asyncio.create_task(self._watch(kinds, stop))
            while await self._all_served(kinds) and not watching.done():
                await asyncio.sleep(_PRESENCE_SECONDS)
            stop.set()
            await watching
            await self.list_all()

    async def _all_served(self, kinds: tuple[str, ...]) -> bool:
        try:
            return all([await self._kube.serves(kind) for kind in kinds])
        except KubeError as error:
            logger.warning("%s", error)
            # An API server that does not answer says nothing about what it serves.
            return set(kinds) <= self._served

    async def _watch(self, kinds: tuple[str, ...], stop: asyncio.Event | None = None) -> None:
        registry = kopf.OperatorRegistry()
        settings = _settings()
        kopf.on.login(registry=registry)(_login)
        for kind in kinds:
            api = APIS[kind]
            group, version = api.path.split("/")[1:] if api.path.startswith("apis/") else ("", "v1")
            kopf.on.event(group=group, version=version, plural=api.plural, id=kind, registry=registry)(
                self._handler(kind)
            )
            if kind in SELECTORS:
                settings.watching.label_selectors[group, version, api.plural] = SELECTORS[kind]
        await kopf.operator(
            registry=registry,
            settings=settings,
            standalone=True,
            clusterwide=not self._namespace,
            namespaces=[self._namespace] if self._namespace else [],
            stop_flag=stop,
        )

    def _handler(self, kind: str) -> Any:
        async def on_event(event: Mapping[str, Any], **_: Any) -> None:
            self._take(kind, event["type"] or "ADDED", dict(event["object"]))

        return on_event

    def _take(self, kind: str, change: str, manifest: Manifest) -> None:
        meta = manifest["metadata"]
        if change == "DELETED":
            self._drop(kind, meta["namespace"], meta["name"], meta["uid"])
        elif kind in RESOURCES:
            key = self._store.put_resource({**manifest, "kind": kind})
            if key is not None:
                self._queue.add(key)
        else:
            for key in self._store.put(facts_from({**manifest, "kind": kind})):
                self._queue.add(key)

    def _drop(self, kind: str, namespace: str, name: str, uid: str) -> None:
        if kind not in RESOURCES:
            for key in self._store.remove(kind, namespace, name, uid):
                self._queue.add(key)
            return
        key = Key(kind, namespace, name)
        known = self._store.resources.get(key)
        gone = self._store.remove_resource(key, uid or known.uid) if known else None
        if gone is not None:
            self._queue.forget(key)
            self._tracking.abandon(key, gone)


def _is_old_news(meta: Mapping[str, Any]) -> bool:
    """Whether an object was last changed so long ago that a living watch would have told."""
    times = [entry["time"] for entry in meta.get("managedFields", ()) if "time" in entry]
    if not times:
        return False
    return datetime.now(UTC) - datetime.fromisoformat(max(times)) > timedelta(seconds=_SILENT_SECONDS)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    # Without it, kopf lists and watches CRDs and namespaces, which needs rights over the whole cluster.
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.queueing.idle_timeout = 0.2
    settings.queueing.exit_timeout = 0.5
    settings.watching.chunk_size = 100
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = (1, 1, 2, 3, 5)
    settings.networking.enforce_retry_after = True
    return settings


async def _login(**arguments: Any) -> kopf.ConnectionInfo | None:
    """The service account's token, read anew before it can expire; else the kubeconfig."""
    found = kopf.login_with_service_account(**arguments)
    if found is None:
        return kopf.login_with_kubeconfig(**arguments)
    return kopf.ConnectionInfo(
        server=found.server,
        ca_path=found.ca_path,
        token=found.token,
        default_namespace=found.default_namespace,
        priority=found.priority,
        expiration=datetime.now(UTC) + timedelta(seconds=_TOKEN_SECONDS),
    )
