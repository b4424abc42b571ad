"""The application over a version, with a plain client and OpenAI's."""

import asyncio
import json
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import openai

from plinth_workloads.serving.asgi import build_asgi
from plinth_workloads.serving.served_model import ServedModel
from plinth_workloads.serving.served_names import ServedNames
from unit.plinth_workloads.serving.tiny_model import make_engine, make_model, until

CHAT = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def service(version, *, keys=None, key="none", aliases=None, **options):
    """A service named m: its state, a plain client and OpenAI's."""
    served = ServedModel(version if callable(version) else lambda uri: version, **options)
    served.set_target("models:/m/1")
    await served.wait_loaded()
    app = build_asgi(served, ServedNames("m", aliases), keys=keys)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        client = openai.AsyncOpenAI(base_url="http://test/v1", api_key=key, http_client=cast(Any, http), max_retries=0)
        yield served, http, client
    await served.close()


def tiny(**options):
    return lambda uri: make_engine(make_model(end_ids=None), **options)


async def texts_until(served, client, uri, *, max_tokens):
    """What four clients are told, who ask all the time, while the version becomes `uri` and after."""
    texts = []

    async def ask():
        answer = await client.completions.create(model="m", prompt="abc", max_tokens=max_tokens, temperature=0)
        texts.append(answer.choices[0].text)

    async def keep_asking():
        while served.uri != uri:
            await ask()
        await ask()

    clients = [asyncio.create_task(keep_asking()) for _ in range(4)]
    await until(lambda: len(texts) > 4)
    served.set_target(uri)
    await asyncio.gather(*clients)
    return texts


async def ask_and_leave(engine, path, **body):
    """A client asks a fake engine that never answers, and goes away while it works; returns when that has ended."""
    engine.gate.clear()
    served = ServedModel(lambda uri: engine)
    served.set_target("m/1")
    await served.wait_loaded()
    gone = asyncio.Event()
    inbox = [{"type": "http.request", "body": json.dumps({"model": "m", **body}).encode(), "more_body": False}]

    async def receive():
        if inbox:
            return inbox.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
    }
    exchange = asyncio.create_task(build_asgi(served, ServedNames("m"))(scope, receive, send))
    await until(lambda: engine.num_running)
    await asyncio.sleep(0.01)
    gone.set()
    await asyncio.wait_for(exchange, timeout=5)
