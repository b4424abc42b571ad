"""An ASGI application behind uvicorn, in the test's own event loop: an application enters, its port leaves."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

BACKLOG = 1000


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[int]:
    """The port on the loopback address where `app` answers; connections that are left are cut."""
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.001)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            await running
