"""Leader election by a Lease, as client-go does it: of several replicas one reconciles, the others watch and wait."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from plinth_operator.facts import Manifest
from plinth_operator.kube import Kube, KubeError

logger = logging.getLogger(__name__)

LEASE = "plinth-operator"


class LeadershipLost(Exception):
    """Another replica may lead now: this process must stop writing at once."""


class Leader:
    """Takes, keeps and gives back one Lease."""

    def __init__(self, kube: Kube, *, namespace: str, identity: str, lease_seconds: int) -> None:
        """Take who we are, and for how long a silent leader stays one."""
        self._kube = kube
        self._namespace = namespace
        self._identity = identity
        self._lease_seconds = lease_seconds
        self._retry_seconds = lease_seconds / 7.5
        self._seen: tuple[str, str] = ("", "")
        self._seen_at = 0.0
        self._free_at = 0.0
        self._clock: Callable[[], float] = time.monotonic

    async def acquire(self) -> None:
        """Wait until the Lease is ours."""
        while True:
            try:
                if await self._try_acquire():
                    logger.info("leading as %s", self._identity)
                    return
            except KubeError as error:
                if error.reason not in ("Conflict", "AlreadyExists"):
                    logger.warning("no lease: %s", error)
            await asyncio.sleep(self._wait_seconds())

    async def keep(self) -> None:
        """Renew the Lease until cancelled.

        Raises:
            LeadershipLost: Somebody else has it, or it could not be renewed for two thirds of its time.
        """
        renewed = self._clock()
        while True:
            await asyncio.sleep(self._retry_seconds)
            try:
                async with asyncio.timeout(self._lease_seconds * 2 / 3):
                    if not await self._try_acquire():
                        raise LeadershipLost("another replica leads")
                renewed = self._clock()
            except (KubeError, TimeoutError) as error:
                if self._clock() - renewed > self._lease_seconds * 2 / 3:
                    raise LeadershipLost(f"the lease could not be renewed: {error}") from error

    async def release(self) -> None:
        """Give the Lease back, so that another replica need not wait for its end."""
        try:
            lease = await self._kube.get("Lease", self._namespace, LEASE)
            if lease and lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
                await self._kube.replace(_typed(lease))
        except KubeError as error:
            logger.warning("the lease was not given back: %s", error)

    def _wait_seconds(self) -> float:
        """Until the next try: as soon as a silent leader's time is over, where that is sooner than usual."""
        left = self._free_at - self._clock()
        return min(self._retry_seconds, left + 0.05) if left > 0 else self._retry_seconds

    async def _try_acquire(self) -> bool:
        lease = await self._kube.get("Lease", self._namespace, LEASE)
        if lease is None:
            meta = {"name": LEASE, "namespace": self._namespace}
            await self._kube.create(_typed({"metadata": meta, "spec": self._spec(transitions=0)}))
            return True
        spec = lease["spec"]
        holder, renewed = spec.get("holderIdentity") or "", spec.get("renewTime") or ""
        if (holder, renewed) != self._seen:
            # Its age is measured by our own clock, from when we saw it move: clocks of machines differ.
            self._seen, self._seen_at = (holder, renewed), self._clock()
        if holder not in ("", self._identity):
            self._free_at = self._seen_at + spec.get("leaseDurationSeconds", self._lease_seconds)
            if self._clock() <= self._free_at:
                return False
        transitions = spec.get("leaseTransitions", 0) + (holder != self._identity)
        acquired = spec.get("acquireTime") if holder == self._identity else None
        lease["spec"] = self._spec(transitions, acquired)
        await self._kube.replace(_typed(lease))
        return True

    def _spec(self, transitions: int, acquired: str | None = None) -> Manifest:
        now = _now()
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._lease_seconds,
            "acquireTime": acquired or now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }


def _typed(lease: Manifest) -> Manifest:
    return {**lease, "apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
