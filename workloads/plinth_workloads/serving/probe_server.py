"""A replica's own port for what is asked about it and not of it: health, metrics and state.

On port 8000 the same paths go through Ray Serve, which holds them, and starts a replica for them, where there is none;
and which asks any replica. Here they meet this one or nothing. Apart from the application, whose other paths it hides.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config, Server

from plinth_workloads.serving.probes import PROBE_PATHS

logger = logging.getLogger(__name__)


class ProbeServer:
    """Answers probes on a port of the machine, in the event loop that starts it, until that ends."""

    def __init__(self, app: ASGIApp, *, port: int, host: str = "0.0.0.0") -> None:
        """Take the application, and where to listen."""
        self._app, self._host, self._port = app, host, port
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen, unless that is done; a port that is taken is told in the log, and the replica serves."""
        if self._serving is None:
            config = Config(
                self._answer,
                host=self._host,
                port=self._port,
                log_level="warning",
                lifespan="off",
                # Not told from a bound method.
                interface="asgi3",
            )
            self._serving = asyncio.create_task(_serve(_Server(config)))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBE_PATHS:
            await self._app(scope, receive, send)
        else:
            await JSONResponse({"message": f"only {', '.join(sorted(PROBE_PATHS))} here"}, 404)(scope, receive, send)


class _Server(Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to Ray."""
        yield


async def _serve(server: _Server) -> None:
    try:
        await server.serve()
    except SystemExit:
        # What uvicorn does where it cannot listen, having logged why.
        logger.exception("probes are answered on port 8000 only")
