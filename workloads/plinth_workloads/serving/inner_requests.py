"""Requests to an ASGI application within this process, without a socket.

Enters: a method, a path and a JSON body, or somebody else's request and a body in place of its own. Leaves: a status
and the JSON of the answer, or what the application is to be called with.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope


@dataclass(frozen=True, slots=True)
class Answer:
    """What an application answered: a status, and an object; empty where it was none."""

    status: int
    content: Mapping[str, Any]


async def ask(app: ASGIApp, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
    """Ask an application for one thing; only `app`'s own exceptions leave it."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def stay() -> Message:
        # A client that waits: its disconnect would end the request.
        return await asyncio.Future()

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": None,
        "server": ("localhost", 80),
    }
    content = b"" if body is None else json.dumps(body).encode()
    await app(*with_body(scope, stay, content), send)
    status = next(message["status"] for message in sent if message["type"] == "http.response.start")
    told = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    try:
        parsed = json.loads(told)
    except ValueError:
        parsed = None
    return Answer(status, parsed if isinstance(parsed, dict) else {})


def with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """A request with another body: its scope, and what it is read by; after the body comes what `receive` says."""
    kept = [
        (name, value)
        for name, value in scope["headers"]
        if name.lower() not in (b"content-length", b"transfer-encoding")
    ]
    headers = [*kept, (b"content-length", str(len(body)).encode())]
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_body() -> Message:
        return first.pop() if first else await receive()

    return {**scope, "headers": headers}, receive_body
