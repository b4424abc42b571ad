"""Bodies that are too large or too slow, piece by piece."""

import asyncio
import json

import pytest

from plinth_api.run import ServeLimits
from plinth_workloads.serving.body_limit import LimitBody

pytestmark = pytest.mark.anyio


class Exchange:
    """One request: the pieces that its client sends, and what is answered."""

    def __init__(self, *pieces, ends=True, headers=()):
        self.inbox = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        if ends:
            self.inbox[-1]["more_body"] = False
        self.scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers]}
        self.taken = 0
        self.seen = None
        self.outbox = []

    async def app(self, scope, receive, send):
        self.seen = b""
        while True:
            message = await receive()
            self.seen += message["body"]
            if not message["more_body"]:
                return

    async def receive(self):
        if self.taken == len(self.inbox):
            await asyncio.Event().wait()
        self.taken += 1
        return self.inbox[self.taken - 1]

    async def send(self, message):
        self.outbox.append(message)

    async def run(self, most=8, seconds=60, idle_seconds=60.0):
        limits = ServeLimits(max_body_bytes=most, request_timeout_seconds=seconds)
        limited = LimitBody(self.app, limits=lambda: limits, idle_seconds=idle_seconds)
        await asyncio.wait_for(limited(self.scope, self.receive, self.send), timeout=5)
        return self

    @property
    def answer(self):
        start, body = self.outbox
        return start["status"], json.loads(body["body"])["error"]


async def test_a_body_within_its_limit_arrives_as_it_was_sent():
    exchange = await Exchange(b"1234", b"", b"5678", headers=[("content-length", "8")]).run()
    assert (exchange.seen, exchange.outbox) == (b"12345678", [])


async def test_a_body_that_says_that_it_is_too_large_is_not_read():
    exchange = await Exchange(b"123456789", headers=[("content-length", "9")]).run()
    status, error = exchange.answer
    assert (status, error["code"], error["type"]) == (413, "body_too_large", "invalid_request_error")
    assert "larger than the 8 bytes" in error["message"]
    assert (exchange.taken, exchange.seen) == (0, None)


async def test_a_body_that_does_not_say_is_read_up_to_the_limit():
    exchange = await Exchange(*[b"1234"] * 100).run()
    assert exchange.answer[0] == 413
    assert (exchange.taken, exchange.seen) == (3, None)


@pytest.mark.parametrize(
    "limits", [pytest.param({"idle_seconds": 0.01}, id="a pause"), pytest.param({"seconds": 0}, id="all of it")]
)
async def test_a_body_that_does_not_come_in_time_is_given_up(limits):
    exchange = await Exchange(b"1", ends=False).run(**limits)
    status, error = exchange.answer
    assert (status, error["code"]) == (408, "body_too_slow")
    assert exchange.seen is None


async def test_a_client_that_leaves_within_its_body_is_answered_nothing():
    exchange = Exchange(b"1", ends=False)
    exchange.inbox.append({"type": "http.disconnect"})
    await exchange.run()
    assert (exchange.seen, exchange.outbox) == (None, [])


async def test_what_is_no_request_passes():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    await LimitBody(app, limits=ServeLimits)({"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]
