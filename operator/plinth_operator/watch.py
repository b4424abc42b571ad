"""kopf as the watcher, and nothing else: its events go into the store, and the keys they concern into the queue.

kopf's own bookkeeping (annotations, finalizers, diffs, events) is off. Kinds that are not served yet are watched from
the moment they are.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
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
_GATHER_SECONDS = 0.5
_SILENT_SHARE = 0.1
"""A watch that has not told of a change for this share of the time between two lists is taken for silent."""

_TOKEN_SECONDS = 300
_PACE_SECONDS = 1.0
_END_SECONDS = 1.0
_KOPF_SURVIVES = (401, 403, 429)
"""It logs in again, or tries again; of the other refusals 404 is a kind that has been removed, 410 an old version."""


class _Backoffs:
    """Waits between tries, in seconds, without an end: a watch that gives up would end the operator."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1, 1, 2, 3, 5), itertools.repeat(10))


class _NoDiffs(kopf.DiffBaseStorage):
    """kopf would copy every object to compare it with its last form, which nobody asks for."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class Watcher:
    """Lists and watches; `listed_at` is when everything that is served was last listed."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        queue: WorkQueue[Key],
        tracking: Tracking,
        *,
        namespace: str,
        resync_seconds: float,
    ) -> None:
        """Take where events go to, the one namespace that is served (empty for all), and how often all is listed."""
        self._kube = kube
        self._store = store
        self._queue = queue
        self._tracking = tracking
        self._namespace = namespace
        self._silent_after = timedelta(seconds=resync_seconds * _SILENT_SHARE)
        self._listing = asyncio.Lock()
        self._gone: set[str] = set()
        self._served: set[str] = {*CORE, *RESOURCES}
        self.silent: set[str] = set()
        """Kinds of which the last list knew what the watch had not told for a while."""
        self.listed_at: datetime | None = None

    async def list_with_patience(self) -> None:
        """List everything, as often as it takes until the API server gives it."""
        while True:
            try:
                return await self.list_all()
            except KubeError as error:
                logger.warning("cannot list: %s", error)
                await asyncio.sleep(max(1.0, error.retry_after))

    async def list_all(self) -> None:
        """List every kind that is served, children before their owners, and forget what is gone."""
        async with self._listing:
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
        self._gone.clear()
        silent = False
        async for manifest in self._kube.list(kind, self._namespace, label_selector=SELECTORS.get(kind, "")):
            meta = manifest["metadata"]
            identity = (meta["namespace"], meta["name"])
            found.add(identity)
            missed = self.listed_at is not None and known.get(identity, 0) < int(meta["resourceVersion"])
            silent = silent or (missed and _is_older(meta, self._silent_after))
            # What the watch has told of meanwhile is newer than the list.
            if meta["uid"] not in self._gone:
                self.take(kind, "MODIFIED", manifest)
        newest = self._store.versions(kind)
        for identity in known.keys() - found:
            if newest.get(identity) == known[identity]:
                self._drop(kind, *identity, "")
        (self.silent.add if silent else self.silent.discard)(kind)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch((*CORE, *RESOURCES), asyncio.Event()))
            for kinds in (RAY, KUEUE):
                group.create_task(self._watch_when_served(kinds))

    async def _watch_when_served(self, kinds: tuple[str, ...]) -> None:
        while True:
            while not await self._all_served(kinds):
                await asyncio.sleep(_PRESENCE_SECONDS)
            stop = asyncio.Event()
            watching = asyncio.create_task(self._watch(kinds, stop))
            while await self._all_served(kinds) and not watching.done():
                if not set(kinds) <= self._served:
                    logger.info("now served: %s", ", ".join(kinds))
                    await self.list_with_patience()
                await asyncio.sleep(_PRESENCE_SECONDS)
            stop.set()
            await watching
            await self.list_with_patience()

    async def _all_served(self, kinds: tuple[str, ...]) -> bool:
        try:
            return all([await self._kube.serves(kind) for kind in kinds])
        except KubeError as error:
            logger.warning("%s", error)
            # An API server that does not answer says nothing about what it serves.
            return set(kinds) <= self._served

    async def _watch(self, kinds: tuple[str, ...], stop: asyncio.Event) -> None:
        """Watch until told to stop; an answer that kopf would give up at ends its watches, which then begin anew."""
        while not stop.is_set():
            refused = asyncio.Event()
            watching = asyncio.create_task(self._watch_until(refused, kinds))
            waits = [asyncio.create_task(event.wait()) for event in (stop, refused)]
            try:
                await asyncio.wait((watching, *waits), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (watching, *waits):
                    task.cancel()
                await asyncio.wait((watching,))
            if not watching.cancelled():
                watching.result()
            if refused.is_set() and not stop.is_set():
                logger.warning("the watches of %s begin anew", ", ".join(kinds))
                await asyncio.sleep(_PRESENCE_SECONDS)

    async def _watch_until(self, refused: asyncio.Event, kinds: tuple[str, ...]) -> None:
        """Watch until cancelled; `refused` is set where only a new beginning helps."""
        registry = kopf.OperatorRegistry()
        settings = _settings()

        async def login(**arguments: Any) -> kopf.AiohttpSession | None:
            return await _login(refused, **arguments)

        kopf.on.login(registry=registry)(login)
        for kind in kinds:
            api = APIS[kind]
            group, version = api.path.split("/")[1:] if api.path.startswith("apis/") else ("", "v1")
            kopf.on.event(group=group, version=version, plural=api.plural, id=kind, registry=registry)(
                self._handler(kind)
            )
            if kind in SELECTORS:
                settings.watching.label_selectors[group, version, api.plural] = SELECTORS[kind]
        # Not kopf.operator: when it ends, it cancels whatever was started in this loop after it, our workers included.
        tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=settings,
            standalone=True,
            clusterwide=not self._namespace,
            namespaces=[self._namespace] if self._namespace else [],
        )
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_END_SECONDS)
        for task in done:
            task.result()

    def _handler(self, kind: str) -> Any:
        async def on_event(event: Mapping[str, Any], **_: Any) -> None:
            self.take(kind, event["type"] or "ADDED", dict(event["object"]))

        return on_event

    def take(self, kind: str, change: str, manifest: Manifest) -> None:
        """What a list or a watch tells: put it into the store, and the keys it concerns into the queue."""
        meta = manifest["metadata"]
        if change == "DELETED":
            if self._listing.locked():
                self._gone.add(meta["uid"])
            self._drop(kind, meta["namespace"], meta["name"], meta["uid"])
        elif kind in RESOURCES:
            self._drop_replaced(kind, meta)
            key = self._store.put_resource({**manifest, "kind": kind})
            if key is not None:
                self._queue.add(key)
        else:
            self._touch(self._store.put(facts_from({**manifest, "kind": kind})))

    def _touch(self, keys: Iterable[Key]) -> None:
        """One look for what happens together: KubeRay makes a cluster and its pods in quick succession."""
        for key in keys:
            self._queue.add_after(key, _GATHER_SECONDS)

    def _drop_replaced(self, kind: str, meta: Mapping[str, Any]) -> None:
        """Drop the resource whose name another one has now: kopf keeps no order between two objects of one name."""
        known = self._store.resources.get(Key(kind, meta["namespace"], meta["name"]))
        if known and known.uid != meta["uid"] and known.resource_version < int(meta["resourceVersion"]):
            self._drop(kind, meta["namespace"], meta["name"], known.uid)

    def _drop(self, kind: str, namespace: str, name: str, uid: str) -> None:
        if kind not in RESOURCES:
            self._touch(self._store.remove(kind, namespace, name, uid))
            return
        key = Key(kind, namespace, name)
        known = self._store.resources.get(key)
        gone = self._store.remove_resource(key, uid or known.uid) if known else None
        if gone is not None:
            self._queue.forget(key)
            self._tracking.abandon(key, gone)


def _is_older(meta: Mapping[str, Any], age: timedelta) -> bool:
    """Whether an object was last changed so long ago that a living watch would have told."""
    times = [entry["time"] for entry in meta.get("managedFields", ()) if "time" in entry]
    if not times:
        return False
    return datetime.now(UTC) - datetime.fromisoformat(max(times)) > age


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    # Without it, kopf lists and watches CRDs and namespaces, which needs rights over the whole cluster.
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.queueing.idle_timeout = 0.2
    settings.queueing.exit_timeout = 0.5
    settings.watching.chunk_size = 50
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = _Backoffs()
    settings.networking.enforce_retry_after = True
    return settings


async def _login(refused: asyncio.Event, **arguments: Any) -> kopf.AiohttpSession | None:
    """The service account's token, read anew before it can expire; else the kubeconfig."""
    account = kopf.login_with_service_account(**arguments)
    found = account or kopf.login_with_kubeconfig(**arguments)
    if found is None:
        return None
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=found.as_ssl_context()),
        headers=found.as_http_headers(),
        trace_configs=[_paced(), _surviving(refused)],
    )
    return kopf.AiohttpSession(
        server=found.server,
        aiohttp_session=session,
        default_namespace=found.default_namespace,
        priority=found.priority,
        expiration=datetime.now(UTC) + timedelta(seconds=_TOKEN_SECONDS) if account else found.expiration,
    )


def _paced() -> aiohttp.TraceConfig:
    """Keeps two lists, or two watches, of one kind apart: kopf asks again at once when a watch ends at once."""
    due: dict[tuple[str, bool], float] = {}

    async def wait(_: Any, __: Any, request: aiohttp.TraceRequestStartParams) -> None:
        if "continue" in request.url.query:
            return
        what, now = (request.url.path, "watch" in request.url.query), time.monotonic()
        start = max(now, due.get(what, now))
        due[what] = start + _PACE_SECONDS
        await asyncio.sleep(start - now)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(wait)
    return trace


def _surviving(refused: asyncio.Event) -> aiohttp.TraceConfig:
    """Tells of answers at which kopf ends itself, or hangs in the attempt, and gives it what it would try again."""

    async def look(_: Any, __: Any, answer: aiohttp.TraceRequestEndParams) -> None:
        status = answer.response.status
        if 400 <= status < 500 and status not in _KOPF_SURVIVES:
            refused.set()
            raise aiohttp.ClientConnectionError(f"status {status} of {answer.url.path}")

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(look)
    return trace
