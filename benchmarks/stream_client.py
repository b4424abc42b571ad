"""A client that costs little: streamed answers over HTTP/1.1, read as bytes, on connections that stay open.

Clients share the cores with the server that is measured; what a client of a general library does for each piece of an
answer would be taken from it. Enters: a request's bytes. Leaves: when its answer began and what it ended with.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

_LAST_CHUNK = b"\r\n0\r\n\r\n"
"""With the end of the chunk before: a header may end with a 0 too."""
_KEPT_BYTES = 1024
"""Of the end of an answer."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer: seconds from the request to its first bytes, and its last ones."""

    first_seconds: float
    end: bytes


class _Connection(asyncio.Protocol):
    """One request after the other."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[Streamed] | None = None
        self._began, self._first, self._head, self._end = 0.0, 0.0, b"", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Those of uvloop are no subclass.
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> "asyncio.Future[Streamed]":
        assert self._transport is not None
        self._answered = asyncio.get_running_loop().create_future()
        self._began, self._first, self._head, self._end = time.perf_counter(), 0.0, b"", b""
        self._transport.write(request)
        return self._answered

    def data_received(self, data: bytes) -> None:
        if self._answered is None or self._answered.done():
            return
        if not self._first:
            self._first, self._head = time.perf_counter() - self._began, data[:_KEPT_BYTES]
        self._end = (self._end + data)[-_KEPT_BYTES:]
        if not self._head.startswith(b"HTTP/1.1 200 "):
            self._answered.set_exception(ConnectionError(self._head.decode(errors="replace")))
        elif self._end.endswith(_LAST_CHUNK):
            self._answered.set_result(Streamed(self._first, self._end))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError(f"the server closed the connection: {exc}"))

    @property
    def is_open(self) -> bool:
        """A server closes what was idle for some seconds."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


class StreamClient:
    """Asks one server; belongs to one event loop, and has as many connections as answers were under way at once."""

    def __init__(self, url: str, path: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._head = f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
        self._idle: list[_Connection] = []

    async def ask(self, body: Mapping[str, Any]) -> Streamed:
        """Raises ConnectionError where the status is not 200, or the answer does not come to its end."""
        content = json.dumps(body).encode()
        self._idle = [one for one in self._idle if one.is_open]
        connection = self._idle.pop() if self._idle else await self._connect()
        answer = await connection.ask(f"{self._head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        self._idle.append(connection)
        return answer

    def close(self) -> None:
        """Close all connections."""
        while self._idle:
            self._idle.pop().close()

    async def _connect(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        return connection
