"""How long nobody has asked: requests enter, the seconds since the last one ended leave.

What probes and Prometheus ask for is no request, so that watching a service does not keep it up.
"""

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from plinth_workloads.serving.probes import PROBE_PATHS


class IdleClock:
    """ASGI middleware that knows when it was last needed. Belongs to one event loop."""

    def __init__(self, app: ASGIApp, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the application, and a clock in seconds."""
        self._app, self._clock = app, clock
        self._in_flight = 0
        self._since = clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["path"] in PROBE_PATHS:
            await self._app(scope, receive, send)
            return
        self._in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight -= 1
            self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._since = self._clock()

    @property
    def idle_seconds(self) -> float:
        """Seconds for which there was no request; 0 while there is one."""
        return 0.0 if self._in_flight else self._clock() - self._since
