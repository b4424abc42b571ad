"""Polls the state endpoint of services whose clusters are up: what a replica knows of itself goes into the store.

Through the Service it meets any one replica, as a client does. Two cases ask replicas themselves, at the addresses of
their pods and a port of their own: while a version is tried, what all of them count matters; and a service that scales
to zero is never asked through Ray Serve, for which that would be a request, and a reason to start a replica.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import aiohttp

from plinth_api.quantity import told_bytes
from plinth_api.service_state import LoadState, ServiceState
from plinth_api.uris import unmounted
from plinth_operator.constants import VOLUME_ROOT
from plinth_operator.facts import Observed, PodFacts, ReplicaState
from plinth_operator.plan.access import serve_service_name
from plinth_operator.queue import WorkQueue
from plinth_operator.settings import Settings
from plinth_operator.store import Key, Resource, Store

logger = logging.getLogger(__name__)

_POLL_SECONDS = 5.0
_REQUEST_SECONDS = 4.0
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class StateUrls:
    """Where a service is asked for its state: at the first of `any_of` that answers, and at `each` for itself."""

    any_of: list[str]
    each: list[str]


class ServicePoller:
    """One loop over all services; one that does not answer loses its state."""

    def __init__(self, store: Store, queue: WorkQueue[Key], *, settings: Settings, now: Callable[[], datetime]) -> None:
        """Take where states go, and the patterns of the endpoints' addresses."""
        self._store = store
        self._queue = queue
        self._settings = settings
        self._now = now

    async def run(self) -> None:
        """Poll until cancelled."""
        limit = asyncio.Semaphore(_AT_ONCE)
        timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                services = [item for item in self._store.resources.items() if item[0].kind == "ModelService"]
                seen = [(key, found, self._store.observe(key)) for key, found in services]
                up = [service for service in seen if service[2].ray_services]
                await asyncio.gather(*(self._poll(session, limit, *service) for service in up))
                await asyncio.sleep(_POLL_SECONDS)

    async def _poll(
        self, session: aiohttp.ClientSession, limit: asyncio.Semaphore, key: Key, resource: Resource, seen: Observed
    ) -> None:
        urls = state_urls(key, json.loads(resource.spec), resource.status_document(), seen, self._settings)
        state, *others = await asyncio.gather(
            self._first(session, limit, urls.any_of), *(self._read(session, limit, url) for url in urls.each)
        )
        known = resource.replica, *resource.replicas
        resource.replica, resource.replicas = state, tuple(other for other in others if other is not None)
        if [*map(_told, known)] != [*map(_told, (state, *resource.replicas))]:
            self._queue.add(key)

    async def _first(
        self, session: aiohttp.ClientSession, limit: asyncio.Semaphore, urls: Sequence[str]
    ) -> ReplicaState | None:
        for url in urls:
            state = await self._read(session, limit, url)
            if state is not None:
                return state
        return None

    async def _read(self, session: aiohttp.ClientSession, limit: asyncio.Semaphore, url: str) -> ReplicaState | None:
        try:
            async with limit, session.get(url) as answer:
                if answer.status != 200:
                    return None
                return replica_state(await answer.read(), self._now())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None


def state_urls(
    key: Key, spec: Mapping[str, Any], status: Mapping[str, Any], seen: Observed, settings: Settings
) -> StateUrls:
    """Where a service is asked for its state.

    Args:
        key: Of the service.
        spec: Its spec as it was written.
        status: Its status as it stands.
        seen: What is known of it.
        settings: With the patterns.
    """
    workers = [pod for pod in seen.pods if pod.role == "worker" and pod.ip and not pod.deleting]
    is_tried = (status.get("rollout") or {}).get("phase") == "Progressing"
    each = [_replica_url(pod, settings) for pod in workers if pod.ready] if is_tried else []
    # vLLM's replicas have no port of their own; such a spec is refused, and what serves goes on.
    to_zero = (spec.get("scaling") or {}).get("minReplicas") == 0 and spec.get("engine") != "vllm"
    if not to_zero:
        url = settings.service_state_url.format(service=serve_service_name(key.name), namespace=key.namespace)
        return StateUrls([url], each)
    clusters = {service.active.cluster for service in seen.ray_services if service.active is not None}
    # Not ready before its replica has loaded, which tells its progress; first is who is likely to answer.
    active = sorted(
        (pod for pod in workers if not clusters or pod.ray_cluster in clusters), key=lambda pod: not pod.ready
    )
    return StateUrls([_replica_url(pod, settings) for pod in active], each)


def _replica_url(pod: PodFacts, settings: Settings) -> str:
    return settings.replica_state_url.format(ip=f"[{pod.ip}]" if ":" in pod.ip else pod.ip)


def replica_state(body: bytes, now: datetime) -> ReplicaState:
    """What the status says of a replica, from its answer at the time `now`.

    Raises:
        ValueError: The answer is not that of a replica.
    """
    found = ServiceState.model_validate_json(unmounted(body.decode(errors="replace"), VOLUME_ROOT))
    return ReplicaState(
        model_uri=found.model_uri or "",
        target_uri=found.target_uri,
        load_error=found.load_error or "",
        read_at=now,
        has_no_keys=found.api_keys == 0,
        prompt_hash=found.prompt_hash,
        adapters=tuple((adapter.name, adapter.uri) for adapter in found.adapters if adapter.uri),
        adapter_errors=tuple((adapter.name, adapter.load_error) for adapter in found.adapters if adapter.load_error),
        loading=_loading(found.loading),
        held=found.held or "",
        replica_id=found.replica_id,
        candidate=found.candidate,
    )


def _loading(load: LoadState | None) -> str:
    """How far a loading is, in tenths of a download: a status is written for each."""
    if load is None:
        return ""
    if load.phase != "fetching":
        total = f" {told_bytes(load.total_bytes)}" if load.total_bytes else ""
        return f"loading{total} onto the device" if load.phase == "loading" else "the engine is warmed up"
    if not load.total_bytes:
        return "downloading"
    tenths = 10 * load.done_bytes // load.total_bytes
    return f"downloading {told_bytes(tenths * load.total_bytes // 10)} of {told_bytes(load.total_bytes)}"


def _told(state: ReplicaState | None) -> ReplicaState | None:
    """The state without the time at which it was read."""
    return replace(state, read_at=datetime.min) if state else None
