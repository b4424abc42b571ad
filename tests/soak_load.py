"""Requests of all kinds to a served model, each with the answers that it may have: a client enters, a status leaves.

What a kind finds wrong in an answer with the right status is an AssertionError.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import aiohttp

from soak_server import ADAPTERS, MAX_BATCH, MAX_WAITING, NAME
from unit.plinth_workloads.serving.tiny_model import CONTEXT_LENGTH, END_ID
from unit.plinth_workloads.serving.tools import TOOLS

GONE = 0
"""In place of a status: this client did not wait for one."""

WORDS = ("import os", "def f(x):", "the quick brown fox", "0123456789", "class A:\n    pass", "Grüße")
_ENDLESS: dict[str, Any] = {"logit_bias": {str(END_ID): -100}}
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


class Client:
    """Asks one server.

    Attributes:
        random: From which requests are made.
    """

    def __init__(self, session: aiohttp.ClientSession, port: int, random: Random) -> None:
        self._session, self._port = session, port
        self._url = f"http://127.0.0.1:{port}"
        self.random = random

    def words(self) -> str:
        """Some of what others ask as well."""
        return " ".join(self.random.choices(WORDS, k=self.random.randint(1, 3)))

    async def get(self, path: str) -> tuple[int, str]:
        """A probe."""
        async with self._session.get(f"{self._url}{path}") as answer:
            return answer.status, await answer.text()

    async def post(self, body: Any, path: str = "completions") -> tuple[int, dict[str, Any]]:
        """A request for a whole answer; `body` is JSON or bytes that are none."""
        data = body if isinstance(body, bytes) else json.dumps({"model": NAME, **body}).encode()
        headers = {"Content-Type": "application/json"}
        async with self._session.post(f"{self._url}/v1/{path}", data=data, headers=headers) as answer:
            return answer.status, await answer.json()

    async def answered(self, body: Any, path: str = "completions") -> dict[str, Any]:
        """The answer to a request that has to get one."""
        status, answer = await self.post(body, path)
        assert status == 200, f"status {status}: {answer}"
        return answer

    async def stream(
        self, body: dict[str, Any], path: str = "completions", *, events: int = 10**9
    ) -> tuple[int, list[str]]:
        """A request for a stream, left after so many events."""
        found: list[str] = []
        async with self._session.post(f"{self._url}/v1/{path}", json={"model": NAME, "stream": True, **body}) as answer:
            async for line in answer.content:
                if line.startswith(b"data: "):
                    found.append(line.decode().removeprefix("data: ").strip())
                if len(found) >= events:
                    break
            return answer.status, found

    async def connect(self, *, narrow: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A plain connection, `narrow` where little fits into it."""
        plain = socket.socket()
        plain.setblocking(False)
        if narrow:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self._port))
        return await asyncio.open_connection(sock=plain, limit=1024)


def post_bytes(body: dict[str, Any]) -> bytes:
    """A request as it travels."""
    content = json.dumps({"model": NAME, **body}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\nConnection: close"
    return f"{head}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


async def short(client: Client) -> int:
    answer = await client.answered({"prompt": client.words(), "max_tokens": 4, **_ENDLESS})
    assert answer["usage"]["completion_tokens"] == 4
    return 200


async def long(client: Client) -> int:
    answer = await client.answered({"prompt": "x" * client.random.randint(1, 28), "max_tokens": 100, **_ENDLESS})
    assert answer["choices"][0]["finish_reason"] == "length"
    return 200


async def streamed(client: Client) -> int:
    messages = [{"role": "user", "content": client.words()}]
    body = {"messages": messages, "max_tokens": 20, "stream_options": {"include_usage": True}, **_ENDLESS}
    status, events = await client.stream(body, "chat/completions")
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 20
    return status


async def cancelled(client: Client) -> int:
    status, events = await client.stream({"prompt": "gone", "max_tokens": 90, **_ENDLESS}, events=2)
    assert len(events) == 2, events
    return status


async def several(client: Client) -> int:
    answer = await client.answered(
        {"prompt": [client.words(), "b"], "n": 3, "max_tokens": 5, "logprobs": 2, **_ENDLESS}
    )
    assert [len(choice["logprobs"]["tokens"]) for choice in answer["choices"]] == [5] * 6
    return 200


async def structured(client: Client) -> int:
    response_format = {"type": "json_schema", "json_schema": {"name": "s", "schema": _SCHEMA}}
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages, "max_tokens": 100, "response_format": response_format}
    answer = await client.answered(body, "chat/completions")
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length" or set(json.loads(choice["message"]["content"])) == {"a", "b"}
    return 200


async def one_of_many_structures(client: Client) -> int:
    expression = f"[0-9]{{{client.random.randint(1, 90)}}}"
    answer = await client.answered({"prompt": "a", "max_tokens": 95, "structured_outputs": {"regex": expression}})
    assert answer["choices"][0]["text"].isdecimal()
    return 200


async def tools(client: Client) -> int:
    body = {"messages": [{"role": "user", "content": "go"}], "tools": TOOLS, "max_tokens": 90}
    choice = {"type": "function", "function": {"name": "time"}}
    answer = await client.answered({**body, "tool_choice": choice}, "chat/completions")
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "time"
    return 200


async def adapted(client: Client) -> int:
    answer = await client.answered({"model": ADAPTERS[0], "prompt": client.words(), "max_tokens": 8})
    assert answer["model"] == ADAPTERS[0]
    return 200


async def adapter_that_comes_and_goes(client: Client) -> int:
    status, _ = await client.post({"model": ADAPTERS[1], "prompt": client.words(), "max_tokens": 8})
    return status


async def malformed(client: Client) -> int:
    bodies = (
        b"{",
        b"[]",
        b"\xff",
        b"[" * 20_000,
        {"prompt": 7},
        {"prompt": "a", "temperature": 9},
        {"prompt": "a", "what": 1},
    )
    return (await client.post(client.random.choice(bodies)))[0]


async def wrong_structure(client: Client) -> int:
    wrong = {"json": {"type": "nothing"}}
    return (await client.post({"prompt": "a", "structured_outputs": wrong}))[0]


async def too_long(client: Client) -> int:
    status, answer = await client.post({"prompt": "x" * (CONTEXT_LENGTH + 1), "max_tokens": 1})
    assert answer["error"]["code"] == "context_length_exceeded"
    return status


async def too_large(client: Client) -> int:
    return (await client.post({"prompt": "x" * 70_000}))[0]


async def unknown(client: Client) -> int:
    return (await client.post({"model": f"other {client.random.random()}", "prompt": "a"}))[0]


async def flood(client: Client) -> int:
    """More at once than a client may have; the others go on."""
    body = {"prompt": "f", "max_tokens": 3, "user": "flood"}
    answers = await asyncio.gather(*(client.post(body) for _ in range(MAX_BATCH + MAX_WAITING + 10)))
    return max(status for status, _ in answers)


async def slow_reader(client: Client) -> int:
    reader, writer = await client.connect(narrow=True)
    writer.write(post_bytes({"prompt": "slow", "max_tokens": 100, "stream": True, **_ENDLESS}))
    begun = await reader.readline()
    for _ in range(10):
        assert await reader.read(1)
        await asyncio.sleep(0.2)
    if client.random.random() < 0.5:
        assert b"data: [DONE]" in await reader.read()
    writer.close()
    return int(begun.split()[1])


async def dropped(client: Client) -> int:
    """A connection that is reset, while its request comes, waits or is answered."""
    _, writer = await client.connect()
    request = post_bytes({"prompt": "dropped", "max_tokens": 90, "stream": client.random.random() < 0.5})
    writer.write(request[: client.random.choice((5, len(request) - 5, len(request)))])
    await writer.drain()
    await asyncio.sleep(client.random.choice((0, 0.02)))
    plain = writer.get_extra_info("socket")
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return GONE


async def probe(client: Client) -> int:
    path = client.random.choice(("/health", "/health/live", "/metrics", "/-/state", "/v1/models"))
    return (await client.get(path))[0]


@dataclass(frozen=True)
class Kind:
    """Requests of one kind, how many of all they are, and the statuses that they may have."""

    ask: Callable[[Client], Awaitable[int]]
    share: float = 1.0
    statuses: frozenset[int] = frozenset({200})

    @property
    def name(self) -> str:
        """In tables."""
        return getattr(self.ask, "__name__", "").replace("_", " ")


KINDS = (
    Kind(short, 6),
    Kind(long, 2),
    Kind(streamed, 4),
    Kind(cancelled, 3),
    Kind(several),
    Kind(structured),
    Kind(one_of_many_structures),
    Kind(tools),
    Kind(adapted, 2),
    Kind(adapter_that_comes_and_goes, 2, frozenset({200, 404, 503})),
    Kind(malformed, 1, frozenset({400})),
    Kind(wrong_structure, 0.5, frozenset({400})),
    Kind(too_long, 1, frozenset({400})),
    Kind(too_large, 0.5, frozenset({413})),
    Kind(unknown, 1, frozenset({404})),
    Kind(flood, 0.1, frozenset({200, 429})),
    Kind(slow_reader, 0.3),
    Kind(dropped, 2, frozenset({GONE})),
    Kind(probe, 2),
)
