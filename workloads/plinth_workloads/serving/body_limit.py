"""How large a request's body may be, and how slowly it may come; refused before more of it is held or any is parsed.

Enters: a body in pieces. Leaves: the same pieces once all are there, or 413 or 408. Apart from the application, whose
framework would first read the whole body.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plinth_api.run import ServeLimits
from plinth_workloads.serving.api_errors import ApiError, body_too_large, body_too_slow

_IDLE_SECONDS = 30.0


class _ClientLeft(Exception):
    """The connection was closed within the body."""


class LimitBody:
    """ASGI middleware that reads a request's body within its limits."""

    def __init__(self, app: ASGIApp, *, limits: Callable[[], ServeLimits], idle_seconds: float = _IDLE_SECONDS) -> None:
        """Take the application, what tells its limits now, and the longest pause between two pieces of a body."""
        self._app, self._limits, self._idle_seconds = app, limits, idle_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits = self._limits()
        try:
            pieces = await self._read(Headers(scope=scope), receive, limits)
        except ApiError as error:
            await error.to_response()(scope, receive, send)
            return
        except _ClientLeft:
            return

        async def receive_again() -> Message:
            return pieces.popleft() if pieces else await receive()

        await self._app(scope, receive_again, send)

    async def _read(self, headers: Headers, receive: Receive, limits: ServeLimits) -> deque[Message]:
        most, loop = limits.max_body_bytes, asyncio.get_running_loop()
        told = headers.get("Content-Length", "0")
        if told.isdecimal() and int(told) > most:
            raise body_too_large(most)
        pieces: deque[Message] = deque()
        num_bytes, deadline = 0, loop.time() + limits.request_timeout_seconds
        while not pieces or pieces[-1].get("more_body", False):
            try:
                async with asyncio.timeout_at(min(deadline, loop.time() + self._idle_seconds)):
                    message = await receive()
            except TimeoutError:
                raise body_too_slow() from None
            if message["type"] == "http.disconnect":
                raise _ClientLeft
            num_bytes += len(message.get("body", b""))
            if num_bytes > most:
                raise body_too_large(most)
            pieces.append(message)
        return pieces
