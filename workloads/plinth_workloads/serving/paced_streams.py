"""Streamed answers in fewer, larger pieces where many are streamed at once: to a server in front each costs the same.

Ray Serve's proxy is another process: a piece takes it and the replica about half a millisecond each, whatever is in it.
So a replica sends so many pieces a second in all: one client has each token at once, and of many each has the tokens of
a few steps together. What a client reads is the same bytes; the first piece of an answer and its end never wait.
Answers that are no event streams pass as they are, and do not count.
"""

import asyncio
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PIECES_PER_SECOND = 200
_LONGEST_PAUSE_SECONDS = 0.1
"""What a reader does not notice."""


def begins_event_stream(message: Message) -> bool:
    """Whether an application says with `message` that its answer is a stream of server-sent events."""
    if message["type"] != "http.response.start":
        return False
    return Headers(raw=list(message.get("headers", ()))).get("content-type", "").startswith("text/event-stream")


class PacedStreams:
    """ASGI middleware that holds pieces of event streams back for a moment. Belongs to one event loop.

    Args:
        app: The application.
        clock: In seconds.
    """

    def __init__(self, app: ASGIApp, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._clock = app, clock
        self._num_streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stream: _Stream | None = None

        async def send_paced(message: Message) -> None:
            nonlocal stream
            if begins_event_stream(message):
                stream = _Stream(send, self._clock, lambda: self._num_streams)
                self._num_streams += 1
            await (stream.send if stream else send)(message)

        try:
            await self._app(scope, receive, send_paced)
        finally:
            if stream:
                self._num_streams -= 1
                stream.close()


class _Stream:
    """One answer that is streamed: what is held back of it."""

    def __init__(self, send: Send, clock: Callable[[], float], num_streams: Callable[[], int]) -> None:
        self._send, self._clock, self._num_streams = send, clock, num_streams
        self._held: list[bytes] = []
        self._sent_at = float("-inf")
        self._sending = asyncio.Lock()
        self._later: asyncio.Task[None] | None = None
        self._error: Exception | None = None

    async def send(self, message: Message) -> None:
        """Send a message now, or with those that follow soon."""
        if self._error is not None:
            raise self._error
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        self._held.append(message.get("body", b""))
        if not message.get("more_body", False):
            self.close()
            await self._send_held(is_last=True)
            return
        pause = min(self._num_streams() / _PIECES_PER_SECOND, _LONGEST_PAUSE_SECONDS)
        wait = self._sent_at + pause - self._clock()
        # Who reads slowly makes the application wait, as without us.
        if wait <= 0 or self._sending.locked():
            await self._send_held()
        elif self._later is None:
            self._later = asyncio.create_task(self._send_in(wait))

    def close(self) -> None:
        """Send nothing more by itself."""
        if self._later is not None and not self._sending.locked():
            self._later.cancel()

    async def _send_in(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        try:
            await self._send_held()
        except Exception as error:
            self._error = error
        finally:
            self._later = None

    async def _send_held(self, *, is_last: bool = False) -> None:
        async with self._sending:
            held, self._held = self._held, []
            if held or is_last:
                self._sent_at = self._clock()
                await self._send({"type": "http.response.body", "body": b"".join(held), "more_body": not is_last})
