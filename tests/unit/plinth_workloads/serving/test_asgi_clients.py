"""Requests of several clients before one engine: who is turned away, who waits, and what waiting costs."""

import asyncio
import threading

import pytest

from plinth_api.run import ServeLimits
from unit.plinth_workloads.serving.asgi_service import service, tiny
from unit.plinth_workloads.serving.fake_engine import FakeEngine
from unit.plinth_workloads.serving.tiny_model import until

pytestmark = pytest.mark.anyio


def sum_of(served):
    stats = served.engine.stats()
    return stats.running + stats.waiting


async def test_the_flooder_is_turned_away_with_a_time_to_come_again_and_nobody_else():
    async with service(tiny(max_batch_size=1, max_waiting=7)) as (served, http, _):
        body = {"model": "m", "prompt": "abc", "max_tokens": 20}
        flood = [asyncio.create_task(http.post("/v1/completions", json={**body, "user": "many"})) for _ in range(30)]
        await until(lambda: sum_of(served) == 6)
        one = await http.post("/v1/completions", json={**body, "user": "one"})
        answers = await asyncio.gather(*flood)

    refused = [answer for answer in answers if answer.status_code == 429]
    assert (one.status_code, len(refused)) == (200, 24)
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert "6 requests of yours" in refused[0].json()["error"]["message"]
    assert 1 <= int(refused[0].headers["Retry-After"]) <= 60


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_whose_time_is_up_while_it_waits_costs_no_step(stream, monkeypatch):
    gate = threading.Event()
    async with service(tiny(max_batch_size=1)) as (served, http, _):
        await until(lambda: sum_of(served) == 0)
        before, forward = served.engine.stats().cache.prompt_tokens, served.engine._batch.forward
        monkeypatch.setattr(served.engine._batch, "forward", lambda pieces: gate.wait(10) and forward(pieces))
        first = asyncio.create_task(http.post("/v1/completions", json={"model": "m", "prompt": "abc"}))
        await until(lambda: served.engine.stats().running == 1)
        served.limits = ServeLimits(request_timeout_seconds=0)
        late = await http.post("/v1/completions", json={"model": "m", "prompt": "xy" * 40, "stream": stream})
        gate.set()
        await first
        await until(lambda: sum_of(served) == 0)
        read = served.engine.stats().cache.prompt_tokens - before

    assert (late.status_code, late.json()["error"]["code"], first.result().status_code) == (504, "request_timeout", 200)
    assert read == 3, "the prompt of the first"


async def test_a_request_of_more_choices_than_there_are_places_is_answered():
    async with service(tiny(max_batch_size=2, max_waiting=1)) as (_, http, _):
        body = {"model": "m", "prompt": ["a", "b", "c"], "n": 4, "max_tokens": 2}
        answer = (await http.post("/v1/completions", json=body)).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(12))


async def test_an_engine_holds_a_part_of_the_choices_of_a_large_request():
    engine = FakeEngine()
    engine.gate.clear()
    async with service(engine) as (_, http, _):
        body = {"model": "m", "prompt": ["p"] * 100, "n": 2}
        answer = asyncio.create_task(http.post("/v1/completions", json=body))
        await until(lambda: engine.num_running == 64)
        await asyncio.sleep(0.01)
        assert engine.num_running == 64
        engine.gate.set()
        assert len((await answer).json()["choices"]) == 200
