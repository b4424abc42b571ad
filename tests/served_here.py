"""A served model behind real HTTP in a thread of this process: an engine enters, the URL of its service leaves."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from plinth_workloads.serving.asgi import build_asgi
from plinth_workloads.serving.engine import ModelEngine
from plinth_workloads.serving.served_model import ServedModel
from plinth_workloads.serving.served_names import ServedNames

NAME = "here"


@contextmanager
def service_here(make_engine: Callable[[], ModelEngine], adapters: Mapping[str, Path] | None = None) -> Iterator[str]:
    """A service named `NAME` with these adapters, until the end of the block."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready, ending = threading.Event(), threading.Event()

    async def serve() -> None:
        served = ServedModel(lambda uri: make_engine(), fetch_adapter=lambda uri, model_uri: Path(uri))
        served.set_adapters({name: str(folder) for name, folder in (adapters or {}).items()})
        served.set_target("models:/here/1")
        await served.wait_loaded()
        config = uvicorn.Config(
            build_asgi(served, ServedNames(NAME)), log_level="critical", lifespan="off", timeout_keep_alive=90
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        ready.set()
        await asyncio.to_thread(ending.wait)
        server.should_exit = True
        await running
        await served.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(timeout=60)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ending.set()
        thread.join(timeout=30)
