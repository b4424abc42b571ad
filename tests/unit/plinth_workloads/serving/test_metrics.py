"""What a service counts and times, as Prometheus reads it."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from plinth_workloads.serving.api_keys import ApiKeys
from plinth_workloads.serving.engine import CacheUse, EngineStats, GenerationFailed, TokenDelta
from plinth_workloads.serving.metrics import ServiceMetrics
from plinth_workloads.serving.version_counts import Turn
from unit.plinth_workloads.serving.asgi_service import CHAT, service
from unit.plinth_workloads.serving.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


def samples(text):
    """Value by name and labels, model_name="m" left out, but for buckets and times of making."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [value for name, value in sorted(sample.labels.items()) if (name, value) != ("model_name", "m")]
            if "le" not in sample.labels and not sample.name.endswith("_created"):
                found[(sample.name, *labels)] = sample.value
    return found


async def scraped(http):
    response = await http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return samples(response.text)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


async def measured(metrics, clock, pieces, *, num_choices=1):
    """Let the pieces, (at, index, tokens so far, reason), pass; an exception as a piece is raised."""

    async def deltas():
        for piece in pieces:
            if isinstance(piece, BaseException):
                raise piece
            clock.now, index, num_tokens, reason = piece
            yield index, TokenDelta("x", 7, num_tokens, reason)

    async for _ in metrics.measured(deltas(), model_name="m", num_choices=num_choices, turn=Turn()):
        pass


def make_metrics(clock=None, stats=None):
    return ServiceMetrics("m", stats=lambda: stats, clock=clock or Clock())


async def test_a_request_is_timed_to_its_first_text_between_tokens_and_to_its_end():
    clock = Clock()
    metrics = make_metrics(clock)
    await measured(metrics, clock, [(100.5, 0, 2, None), (101.0, 0, 4, None), (102.5, 0, 6, "stop")])

    found = samples(metrics.render().decode())
    assert found[("plinth_time_to_first_token_seconds_sum",)] == 0.5
    assert found[("plinth_time_per_output_token_seconds_sum",)] == 0.5
    assert found[("plinth_e2e_request_latency_seconds_sum",)] == 2.5
    assert found[("plinth_prompt_tokens_total",)] == 7
    assert found[("plinth_generation_tokens_total",)] == 6
    assert found[("plinth_request_success_total", "stop")] == 1


async def test_a_prompt_counts_once_and_each_of_its_choices_for_itself():
    clock = Clock()
    metrics = make_metrics(clock)
    await measured(metrics, clock, [(101, index, 1, "length") for index in range(4)], num_choices=2)

    found = samples(metrics.render().decode())
    assert found[("plinth_prompt_tokens_total",)] == 14
    assert found[("plinth_generation_tokens_total",)] == 4
    assert found[("plinth_time_to_first_token_seconds_count",)] == 4
    assert found[("plinth_request_success_total", "length")] == 4
    assert ("plinth_time_per_output_token_seconds_count",) not in found, "one token has no time between tokens"
    assert metrics.requests == 1


@pytest.mark.parametrize(
    ("error", "sample", "errors"),
    [
        pytest.param(GenerationFailed("x"), ("plinth_request_errors_total", "generation_failed"), 1, id="ours"),
        pytest.param(RuntimeError("x"), ("plinth_request_errors_total", "server_error"), 1, id="a bug"),
        pytest.param(asyncio.CancelledError(), ("plinth_request_success_total", "abort"), 0, id="the client left"),
    ],
)
async def test_a_request_that_does_not_end_well_is_counted_by_why(error, sample, errors):
    clock = Clock()
    metrics = make_metrics(clock)
    with pytest.raises(type(error)):
        await measured(metrics, clock, [(101, 0, 3, None), error])

    found = samples(metrics.render().decode())
    assert found[sample] == 1
    assert found[("plinth_generation_tokens_total",)] == 3
    assert ("plinth_e2e_request_latency_seconds_count",) not in found
    assert metrics.errors == errors


def test_an_engine_is_asked_when_it_is_scraped_and_not_before_there_is_one():
    assert samples(make_metrics().render().decode()) == {}
    stats = EngineStats(running=2, waiting=3, cache=CacheUse(used=10, total=40, prompt_tokens=100, reused_tokens=64))
    found = samples(make_metrics(stats=stats).render().decode())
    assert found == {
        ("plinth_requests_running",): 2,
        ("plinth_requests_waiting",): 3,
        ("plinth_kv_cache_usage_perc",): 0.25,
        ("plinth_prefix_cache_queries_total",): 100,
        ("plinth_prefix_cache_hits_total",): 64,
    }


async def test_a_scrape_needs_no_key_and_tells_no_prompt(tmp_path):
    (tmp_path / "alice").write_text("sk")
    async with service(FakeEngine(), keys=ApiKeys(tmp_path), key="sk") as (_, http, client):
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "secret"}])
        await http.post("/v1/completions", json={"model": "m", "prompt": "secret"})
        text = (await http.get("/metrics")).text
        found = await scraped(http)

    assert "secret" not in text
    assert found[("plinth_requests_total", "/v1/chat/completions", "200")] == 1
    assert found[("plinth_requests_total", "/v1/completions", "", "401")] == 1
    assert found[("plinth_request_success_total", "stop")] == 1


async def test_nothing_that_a_client_writes_becomes_a_label():
    async with service(FakeEngine()) as (_, http, _):
        await http.post("/v1/completions", json={"model": "made-up", "prompt": "p"})
        await http.post("/v1/chat/completions", json={"model": "m", "messages": CHAT, "temperature": 9})
        await http.get("/v1/models/made-up")
        await http.get("/made-up")
        await http.get("/health")
        found = await scraped(http)

    counted = {key[1:]: value for key, value in found.items() if key[0] == "plinth_requests_total"}
    assert counted == {
        ("/v1/completions", "", "404"): 1,
        ("/v1/chat/completions", "", "400"): 1,
        ("/v1/models/{model}", "", "404"): 1,
        ("other", "", "404"): 1,
    }


async def test_a_failure_within_a_stream_is_an_error_behind_a_status_of_200():
    async with service(FakeEngine(fails_after=1)) as (_, http, _):
        await http.post("/v1/completions", json={"model": "m", "prompt": "p", "stream": True})
        found = await scraped(http)

    assert found[("plinth_requests_total", "/v1/completions", "200")] == 1
    assert found[("plinth_request_errors_total", "generation_failed")] == 1


async def test_applications_of_one_process_count_for_themselves():
    async with service(FakeEngine()) as (_, one, _), service(FakeEngine()) as (_, other, _):
        await one.post("/v1/completions", json={"model": "m", "prompt": "p"})
        assert ("plinth_prompt_tokens_total",) in await scraped(one)
        assert ("plinth_prompt_tokens_total",) not in await scraped(other)
