"""The application over a version, with a plain client and OpenAI's."""

from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import openai

from plinth_workloads.serving.asgi import build_asgi
from plinth_workloads.serving.served_model import ServedModel
from unit.plinth_workloads.serving.tiny_model import make_engine, make_model

CHAT = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def service(version, *, keys=None, key="none", room_for=None):
    """A service named m: its state, a plain client and OpenAI's."""
    served = ServedModel(version if callable(version) else lambda uri: version, room_for=room_for)
    served.set_target("models:/m/1")
    await served.wait_loaded()
    transport = httpx.ASGITransport(app=build_asgi(served, name="m", keys=keys), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        client = openai.AsyncOpenAI(base_url="http://test/v1", api_key=key, http_client=cast(Any, http), max_retries=0)
        yield served, http, client
    await served.close()


def tiny(**options):
    return lambda uri: make_engine(make_model(end_ids=None), **options)
