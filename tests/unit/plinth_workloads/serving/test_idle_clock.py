"""Requests are what keeps a service up; what watches it is none, on the replica's own port least of all."""

import asyncio
import logging

import httpx
import pytest
from starlette.responses import PlainTextResponse

from plinth_workloads.serving.idle_clock import IdleClock
from plinth_workloads.serving.probe_server import ProbeServer
from serving_processes import free_port

pytestmark = pytest.mark.anyio


class Watched:
    """An application that waits for `gate`, with a clock that stands."""

    def __init__(self):
        self.now, self.gate = 0.0, asyncio.Event()
        self.gate.set()
        self.clock = IdleClock(self.answer, clock=lambda: self.now)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=self.clock), base_url="http://test")

    async def answer(self, scope, receive, send):
        await self.gate.wait()
        await PlainTextResponse("ok")(scope, receive, send)


async def test_seconds_are_counted_from_the_end_of_the_last_request():
    watched = Watched()
    watched.now = 5
    assert watched.clock.idle_seconds == 5
    await watched.http.get("/v1/models")
    watched.now = 7
    assert watched.clock.idle_seconds == 2


async def test_who_is_being_answered_is_not_idle():
    watched = Watched()
    watched.gate.clear()
    asked = asyncio.create_task(watched.http.get("/v1/models"))
    await asyncio.sleep(0.01)
    watched.now = 100
    assert watched.clock.idle_seconds == 0
    watched.gate.set()
    await asked
    assert watched.clock.idle_seconds == 0


@pytest.mark.parametrize("path", ["/-/state", "/metrics", "/health", "/health/ready", "/health/live"])
async def test_watching_is_no_request(path):
    watched = Watched()
    watched.now = 5
    assert (await watched.http.get(path)).text == "ok"
    assert watched.clock.idle_seconds == 5


async def answered(port, path):
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=20)) as http:
        return await http.get(f"http://127.0.0.1:{port}{path}")


async def test_a_replica_answers_probes_on_its_own_port_and_nothing_else():
    port = free_port()
    server = ProbeServer(PlainTextResponse("ok"), port=port, host="127.0.0.1")
    server.start()
    server.start()
    assert (await answered(port, "/metrics")).text == "ok"
    assert (await answered(port, "/v1/models")).status_code == 404


async def test_a_port_that_is_taken_is_told_and_ends_nothing(caplog):
    port = free_port()
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    server = ProbeServer(PlainTextResponse("ok"), port=port, host="127.0.0.1")
    with caplog.at_level(logging.ERROR):
        server.start()
        await asyncio.wait({server._serving})
    taken.close()
    assert "probes are answered on port 8000 only" in caplog.text
