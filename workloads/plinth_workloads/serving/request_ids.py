"""What a request is called: the X-Request-Id that it came with, or a new one; on its answer and in log lines about it.

Enters: the header of a request. Leaves: the same header on every answer, errors and streams included. Around everything
else, so that what is refused before a route is found has an id as well.
"""

import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_ID_LENGTH = 128

_HEADER = "X-Request-Id"
_current: ContextVar[str] = ContextVar("request_id", default="-")


def request_id() -> str:
    """The id of the request that is being answered; "-" outside of one."""
    return _current.get()


class RequestIds:
    """ASGI middleware that names requests."""

    def __init__(self, app: ASGIApp, *, front_repeats_ids: bool) -> None:
        """Take the application, and who tells a client its id.

        Args:
            app: The application.
            front_repeats_ids: A server in front puts the id of each request on its answer, so that we add only an id
                that replaces one. Ray Serve's proxy does, after it has given an id to requests without one.
        """
        self._app, self._front_repeats_ids = app, front_repeats_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name a request, and pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(_HEADER, "")
        chosen = given if _is_accepted(given) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and not (self._front_repeats_ids and chosen == given):
                MutableHeaders(scope=message)[_HEADER] = chosen
            await send(message)

        token = _current.set(chosen)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            _current.reset(token)


def _is_accepted(given: str) -> bool:
    """Anything else could fill logs, or write lines of its own into them."""
    return 0 < len(given) <= MAX_ID_LENGTH and given.isascii() and given.isprintable()
