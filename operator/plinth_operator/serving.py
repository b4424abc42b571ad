"""Polls the state endpoint of services whose clusters are up: what a replica knows of itself goes into the store.

Through the Service it meets any one replica, as a client does. While a version is tried, what all of them count
matters: then each pod is asked, whose proxy passes the question to the replica beside it.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import aiohttp

from plinth_api.service_state import ServiceState
from plinth_operator.facts import ReplicaState
from plinth_operator.plan.access import serve_service_name
from plinth_operator.queue import WorkQueue
from plinth_operator.store import Key, Resource, Store

logger = logging.getLogger(__name__)

_POLL_SECONDS = 5.0
_REQUEST_SECONDS = 4.0
_AT_ONCE = 16


class ServicePoller:
    """One loop over all services; one that does not answer loses its state."""

    def __init__(
        self, store: Store, queue: WorkQueue[Key], *, url: str, replica_url: str, now: Callable[[], datetime]
    ) -> None:
        """Take the patterns of the endpoint's address: with {service} and {namespace}, and with a pod's {ip}."""
        self._store = store
        self._queue = queue
        self._url = url
        self._replica_url = replica_url
        self._now = now

    async def run(self) -> None:
        """Poll until cancelled."""
        limit = asyncio.Semaphore(_AT_ONCE)
        timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                services = [item for item in self._store.resources.items() if item[0].kind == "ModelService"]
                up = [(key, found) for key, found in services if self._store.observe(key).ray_services]
                await asyncio.gather(*(self._poll(session, limit, key, found) for key, found in up))
                await asyncio.sleep(_POLL_SECONDS)

    async def _poll(
        self, session: aiohttp.ClientSession, limit: asyncio.Semaphore, key: Key, resource: Resource
    ) -> None:
        url = self._url.format(service=serve_service_name(key.name), namespace=key.namespace)
        urls = [url, *self._replica_urls(key, resource)]
        state, *others = await asyncio.gather(*(self._read(session, limit, url) for url in urls))
        known = resource.replica, *resource.replicas
        resource.replica, resource.replicas = state, tuple(other for other in others if other is not None)
        if [*map(_told, known)] != [*map(_told, (state, *resource.replicas))]:
            self._queue.add(key)

    def _replica_urls(self, key: Key, resource: Resource) -> list[str]:
        """Of the pods that answer, while a version is tried."""
        rollout = resource.status_document().get("rollout") or {}
        if rollout.get("phase") != "Progressing":
            return []
        workers = (pod for pod in self._store.observe(key).pods if pod.role == "worker" and not pod.deleting)
        pods = [pod for pod in workers if pod.ready and pod.ip]
        return [self._replica_url.format(ip=f"[{pod.ip}]" if ":" in pod.ip else pod.ip) for pod in pods]

    async def _read(self, session: aiohttp.ClientSession, limit: asyncio.Semaphore, url: str) -> ReplicaState | None:
        try:
            async with limit, session.get(url) as answer:
                if answer.status != 200:
                    return None
                return replica_state(await answer.read(), self._now())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None


def replica_state(body: bytes, now: datetime) -> ReplicaState:
    """What the status says of a replica, from its answer at the time `now`.

    Raises:
        ValueError: The answer is not that of a replica.
    """
    found = ServiceState.model_validate_json(body)
    return ReplicaState(
        model_uri=found.model_uri or "",
        target_uri=found.target_uri,
        load_error=found.load_error or "",
        read_at=now,
        has_no_keys=found.api_keys == 0,
        prompt_hash=found.prompt_hash,
        adapters=tuple((adapter.name, adapter.uri) for adapter in found.adapters if adapter.uri),
        adapter_errors=tuple((adapter.name, adapter.load_error) for adapter in found.adapters if adapter.load_error),
        held=found.held or "",
        replica_id=found.replica_id,
        candidate=found.candidate,
    )


def _told(state: ReplicaState | None) -> ReplicaState | None:
    """The state without the time at which it was read."""
    return replace(state, read_at=datetime.min) if state else None
