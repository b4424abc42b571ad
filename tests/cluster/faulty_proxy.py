"""A reverse proxy between a client and the API server that fails on purpose, by rule, and counts what it was asked.

It adds nothing else: headers, tokens and bodies go through. With a key it speaks https with the API server's own
certificate, which Go's clients need: they send no token over plain http.
"""

import asyncio
import json
import re
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import aiohttp
from aiohttp import web

LOOPBACK = "127.0.0.1"
WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "host", "content-length"})
NOT_FORWARDED = HOP_BY_HOP | {"accept-encoding"}
"""An answer that was packed would be unpacked on its way and carry the wrong header."""

REASONS = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}

Action = Literal[
    "respond", "fail_after", "hold", "hold_after", "cut", "silence", "duplicate", "delay", "withhold", "expire"
]
WATCH_ACTIONS = frozenset({"cut", "silence", "duplicate", "withhold", "expire"})


@dataclass
class Rule:
    """Which requests, and what happens to them.

    Actions: `respond` answers with `status` and never asks the server; `fail_after` lets the server act and answers
    with `status` all the same; `hold` never asks the server and never answers, `hold_after` lets the server act and
    never answers; `delay` holds an answer, or every event of a watch, for `seconds`. For watches only:
    `cut` breaks the connection and `silence` says nothing more, both after `events` events; `duplicate` sends every
    event twice; `withhold` keeps all events back until a request that matches `until` has come; `expire` sends the
    error event of a resource version that is too old.
    """

    action: Action
    method: str | None = None
    path: str = ""
    body: str = ""
    """A regular expression that matches anywhere in what is sent."""
    watch: bool | None = None
    """True for watches only, False for all but them; what is for watches only means them anyway."""
    status: int = 500
    retry_after: int | None = None
    events: int = 0
    seconds: float = 0.0
    until: str = ""
    """A regular expression that may match anywhere in method, blank and path."""
    times: int | None = None
    """After so many requests the rule is spent; None is never."""
    hits: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    """Set once a request is held."""

    def matches(self, method: str, path: str, is_watch: bool, body: bytes = b"") -> bool:
        """Whether a request is meant; `path` is a regular expression that may match anywhere in path and query."""
        if self.times is not None and self.hits >= self.times:
            return False
        wanted = True if self.action in WATCH_ACTIONS else self.watch
        return (
            (self.method is None or self.method == method)
            and (wanted is None or wanted == is_watch)
            and re.search(self.path, path) is not None
            and (not self.body or re.search(self.body.encode(), body) is not None)
        )

    async def hold(self) -> None:
        """Tell that a request has come so far, and wait until its client goes away."""
        self.reached.set()
        await asyncio.Event().wait()


@dataclass
class Request:
    """What was asked and answered; the status is 0 while there is none."""

    method: str
    path: str
    time: float
    status: int = 0
    fault: str | None = None
    user_agent: str = ""


@dataclass
class FaultyProxy:
    """One proxy: `await start()` and `stop()` in a loop, or `with FaultyProxy(...)` for a thread of its own."""

    upstream: str
    certificate: Path | None = None
    key: Path | None = None
    rules: list[Rule] = field(default_factory=list)
    log: list[Request] = field(default_factory=list)
    url: str = ""
    """Known once it was started; it stays the same when it is stopped and started again."""

    def __post_init__(self) -> None:
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def writes(self, path: str = "") -> list[Request]:
        """Requests that change something, of a path (a regular expression)."""
        return [entry for entry in list(self.log) if entry.method in WRITES and re.search(path, entry.path)]

    async def start(self) -> None:
        """Listen on a free port."""
        trust = ssl.create_default_context(cafile=str(self.certificate)) if self.certificate else True
        self._session = aiohttp.ClientSession(
            # Shorter than any server keeps a connection: a request on one that is just being closed is lost.
            connector=aiohttp.TCPConnector(ssl=trust, limit=0, keepalive_timeout=1.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            auto_decompress=False,
            # A watch event is a line, and a big object is a long one.
            read_bufsize=2**24,
        )
        app = web.Application(client_max_size=2**27)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        own: ssl.SSLContext | None = None
        if self.certificate and self.key:
            own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            own.load_cert_chain(self.certificate, self.key)
        site = web.TCPSite(self._runner, LOOPBACK, self._port, ssl_context=own)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"{'https' if own else 'http'}://{LOOPBACK}:{self._port}"

    async def stop(self) -> None:
        """Close every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()
        self._runner = self._session = None

    def __enter__(self) -> Self:
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="faulty-proxy", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self.away()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def away(self) -> None:
        """Refuse every connection from now on, and break those that there are, until `back`."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self.stop(), self._loop).result(30)

    def back(self) -> None:
        """Listen again, at the same address."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self.start(), self._loop).result(30)

    # ---- one request

    def _take_rule(self, entry: Request, is_watch: bool, body: bytes) -> Rule | None:
        for rule in list(self.rules):
            if rule.matches(entry.method, entry.path, is_watch, body):
                rule.hits += 1
                entry.fault = rule.action
                return rule
        return None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        is_watch = request.query.get("watch") in ("1", "true", "True")
        agent = request.headers.get("User-Agent", "")
        entry = Request(request.method, request.path_qs, time.monotonic(), user_agent=agent)
        self.log.append(entry)
        content = await request.read()
        rule = self._take_rule(entry, is_watch, content)
        if rule and rule.action == "respond":
            return failure(entry, rule)
        if rule and rule.action == "hold":
            await rule.hold()
        if rule and rule.action == "expire":
            entry.status = 200
            event = {"type": "ERROR", "object": failure_body(410, "too old resource version")}
            return web.Response(body=json.dumps(event).encode() + b"\n", content_type="application/json")
        assert self._session is not None
        headers = [(key, value) for key, value in request.headers.items() if key.lower() not in NOT_FORWARDED]
        async with self._session.request(
            request.method,
            self.upstream.rstrip("/") + request.raw_path,
            headers=headers,
            data=content or None,
            skip_auto_headers=("Content-Type", "User-Agent", "Accept", "Accept-Encoding"),
            allow_redirects=False,
        ) as answer:
            entry.status = answer.status
            if is_watch and answer.status == 200:
                return await self._stream(request, answer, rule)
            body = await answer.read()
            if rule and rule.action == "delay":
                await asyncio.sleep(rule.seconds)
            if rule and rule.action == "hold_after":
                await rule.hold()
            if rule and rule.action == "fail_after":
                return failure(entry, rule)
            return web.Response(body=body, status=answer.status, headers=forwarded(answer))

    def _was_asked(self, pattern: str) -> bool:
        return any(re.search(pattern, f"{entry.method} {entry.path}") for entry in self.log)

    async def _stream(
        self, request: web.Request, answer: aiohttp.ClientResponse, rule: Rule | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=forwarded(answer))
        await response.prepare(request)
        with suppress(aiohttp.ClientError, ConnectionError):
            while rule and rule.action == "withhold" and not self._was_asked(rule.until):
                await asyncio.sleep(0.05)
            async for chunk in disturbed(answer, rule):
                await response.write(chunk)
            if rule and rule.action == "cut" and request.transport is not None:
                # Without the end of the chunked body, as when the machine in between goes away.
                request.transport.abort()
                return response
            await response.write_eof()
        return response


async def disturbed(answer: aiohttp.ClientResponse, rule: Rule | None) -> AsyncIterator[bytes]:
    """The chunks of a watch as a rule leaves them; with a rule a chunk is one event, a line of JSON."""
    if rule is None:
        async for chunk in answer.content.iter_any():
            yield chunk
        return
    if rule.action in ("cut", "silence") and rule.events == 0:
        if rule.action == "silence":
            await asyncio.Event().wait()
        return
    number = 0
    async for line in answer.content:
        if rule.action == "delay":
            await asyncio.sleep(rule.seconds)
        yield line
        if rule.action == "duplicate":
            yield line
        number += 1
        if number >= rule.events and rule.action == "cut":
            return
        if number >= rule.events and rule.action == "silence":
            await asyncio.Event().wait()


def forwarded(answer: aiohttp.ClientResponse) -> list[tuple[str, str]]:
    """Headers of an answer that are not about its connection."""
    return [(key, value) for key, value in answer.headers.items() if key.lower() not in HOP_BY_HOP]


def failure_body(status: int, message: str) -> dict[str, Any]:
    """A Status object as the API server sends it."""
    reason = REASONS.get(status, "Unknown")
    fields = {"status": "Failure", "message": message, "reason": reason, "code": status}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, **fields}


def failure(entry: Request, rule: Rule) -> web.Response:
    """The answer of a rule."""
    entry.status = rule.status
    headers = {"Retry-After": str(rule.retry_after)} if rule.retry_after is not None else {}
    return web.json_response(failure_body(rule.status, "on purpose"), status=rule.status, headers=headers)
