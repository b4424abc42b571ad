"""What a benchmark of the operator sees from outside: when objects appear, and what processes use.

Nothing here is the operator's own account of itself, but for the counters that `/metrics` shows.
"""

import asyncio
import json
import os
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

Document = dict[str, Any]

_TICKS = os.sysconf("SC_CLK_TCK")
_CONNECTIONS = 32
_LINE_BYTES = 2**24


def cpu_seconds(pid: int) -> float:
    """The processor time that a process and its threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_bytes(pid: int, which: str = "VmRSS") -> int:
    """Resident memory of a process; `VmHWM` is the most that it ever had."""
    found = re.search(rf"^{which}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found, f"no {which} in the status of {pid}"
    return int(found.group(1)) * 1024


def counters(page: str, name: str) -> dict[str, float]:
    """The samples of one Prometheus metric, by its labels as text."""
    found = {}
    for line in page.splitlines():
        if line.startswith((f"{name}{{", f"{name} ")):
            labels, _, value = line.removeprefix(name).rpartition(" ")
            found[labels] = float(value)
    return found


def growth(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """By how much counters have grown; those that have not are left out."""
    return {key: value - before.get(key, 0.0) for key, value in after.items() if value != before.get(key, 0.0)}


@dataclass
class Sightings:
    """What a watch has told of the objects of one kind, by their names.

    Attributes:
        first: When each was first seen (monotonic seconds).
        versions: The resourceVersions that each has had: they tell the order of changes of different objects.
        there: Which are there now.
    """

    first: dict[str, float] = field(default_factory=dict)
    versions: dict[str, list[int]] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)


class Cluster:
    """Requests and watches of an administrator; an async context manager."""

    def __init__(self, url: str, token: str, certificate: Path) -> None:
        """Take the address, the token and what to trust."""
        self._url = url
        self._token = token
        self._trust = ssl.create_default_context(cafile=str(certificate))
        self._session: aiohttp.ClientSession | None = None
        self._watches: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._token}"},
            connector=aiohttp.TCPConnector(ssl=self._trust, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            read_bufsize=_LINE_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._watches:
            task.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        assert self._session is not None
        await self._session.close()

    async def request(self, method: str, path: str, body: Document | None = None) -> Document:
        """One request; `RuntimeError` with the server's answer when it refuses."""
        assert self._session is not None
        async with self._session.request(method, self._url + path, json=body) as answer:
            document: Document = await answer.json(content_type=None)
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {document.get('message')}")
            return document

    async def create_all(self, path: str, documents: list[Document]) -> None:
        """Create objects of one kind as fast as the server takes them."""
        free = asyncio.Semaphore(_CONNECTIONS)

        async def create(document: Document) -> None:
            async with free:
                await self.request("POST", path, document)

        await asyncio.gather(*(create(document) for document in documents))

    async def watch(self, path: str) -> Sightings:
        """Watch a kind from now on; only metadata is sent, so that looking costs the server little."""
        sightings = Sightings()
        listed = await self.request("GET", f"{path}?limit=1")
        version = listed["metadata"]["resourceVersion"]
        self._watches.append(asyncio.create_task(self._follow(path, version, sightings)))
        return sightings

    async def _follow(self, path: str, version: str, sightings: Sightings) -> None:
        assert self._session is not None
        accept = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}
        while True:
            query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
            with suppress(aiohttp.ClientError):
                async with self._session.get(self._url + path, params=query, headers=accept) as answer:
                    async for line in answer.content:
                        now, event = time.monotonic(), json.loads(line)
                        meta = event["object"]["metadata"]
                        version = meta["resourceVersion"]
                        if event["type"] == "DELETED":
                            sightings.there.discard(meta["name"])
                        elif event["type"] != "BOOKMARK":
                            sightings.first.setdefault(meta["name"], now)
                            sightings.versions.setdefault(meta["name"], []).append(int(version))
                            sightings.there.add(meta["name"])


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float, what: str) -> float:
    """Wait for a condition; the monotonic time at which it was seen to hold.

    Raises:
        TimeoutError: It did not come in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        held = condition()
        if held if isinstance(held, bool) else await held:
            return time.monotonic()
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        await asyncio.sleep(0.02)
