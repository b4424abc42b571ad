"""What a service promises holds where vLLM serves: who is answered, what chats start with, limits, state."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from fake_vllm_app import make_vllm_app
from plinth_api.model_service import PromptTemplate
from plinth_api.run import ServeLimits
from plinth_api.service_state import STATE_PATH, AdapterState
from plinth_workloads.serving.api_keys import ApiKeys
from plinth_workloads.serving.served_names import ServedNames
from plinth_workloads.serving.vllm_front import VllmService, build_front

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
DOCS = AdapterState(name="docs", uri="models:/docs/1", target_uri="models:/docs/1")
BROKEN = AdapterState(name="broken", target_uri="models:/broken/1", load_error="it is damaged")


@asynccontextmanager
async def front(*, keys=None, seconds_a_chunk=0.0, health=None, **changes: Any):
    """A service named m: what it is, a client, and the bodies that reach vLLM."""

    async def is_well() -> None:
        if health:
            raise RuntimeError(health)

    inner = make_vllm_app("m", seconds_a_chunk=seconds_a_chunk)
    given = {"names": ServedNames("m"), "uri": "models:/m/1", "task": "generate", "check_health": is_well, **changes}
    served = VllmService(**given)
    transport = httpx.ASGITransport(app=build_front(inner, served, keys=keys), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield served, http, inner.state.asked


async def test_what_vllm_answers_reaches_the_client_as_it_is():
    async with front() as (_, http, asked):
        answer = await http.post(CHAT, json={**HELLO, "guided": "by vLLM"})
    assert (answer.status_code, answer.json()["asked"]) == (200, {**HELLO, "guided": "by vLLM"})
    assert asked == [{**HELLO, "guided": "by vLLM"}]


async def test_a_stream_comes_in_pieces():
    async with front() as (_, http, _asked):
        answer = await http.post(CHAT, json={**HELLO, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.text.count("data: "), answer.text.endswith("data: [DONE]\n\n")) == (4, True)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/tokenize"),
        ("POST", "/v1/embeddings"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("POST", "/v1/models"),
        ("GET", CHAT),
    ],
)
async def test_of_vllms_own_paths_only_those_of_the_task_are_open(method, path):
    async with front() as (_, http, asked):
        answer = await http.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == 404
    assert "/v1/chat/completions and /v1/completions" in answer.json()["error"]["message"]
    assert asked == []


async def test_a_service_that_embeds_has_the_endpoint_of_embeddings_and_no_chat():
    async with front(task="embed") as (_, http, _asked):
        answer = await http.post("/v1/embeddings", json={"model": "m", "input": "a"})
        chat = await http.post(CHAT, json=HELLO)
    assert (answer.status_code, chat.status_code) == (200, 404)
    assert chat.json()["error"]["message"].endswith("this service has /v1/embeddings")


async def test_where_there_are_keys_only_those_who_have_one_are_answered(tmp_path):
    (tmp_path / "alice").write_text("sk-alice")
    async with front(keys=ApiKeys(tmp_path)) as (_, http, asked):
        refused = await http.post(CHAT, content=b"{", headers={"Authorization": "Bearer sk-bob"})
        models = await http.get("/v1/models")
        answered = await http.post(CHAT, json=HELLO, headers={"Authorization": "Bearer sk-alice"})
        state = await http.get(STATE_PATH)
    assert (refused.status_code, models.status_code, answered.status_code) == (401, 401, 200)
    assert state.json()["apiKeys"] == 1
    assert len(asked) == 1


async def test_the_state_is_what_the_operator_reads_of_any_replica():
    prompt = PromptTemplate(system="Be kind.")
    async with front(adapters=(DOCS, BROKEN), prompt=prompt) as (_, http, _asked):
        state = (await http.get(STATE_PATH)).json()
    assert (state["modelUri"], state["targetUri"], state["loaded"]) == ("models:/m/1", "models:/m/1", True)
    assert state["promptHash"] == prompt.digest
    assert [(one["name"], one.get("uri"), one.get("loadError")) for one in state["adapters"]] == [
        ("docs", "models:/docs/1", None),
        ("broken", None, "it is damaged"),
    ]


async def test_a_chat_starts_with_the_services_prompt_which_changes_in_place():
    async with front(prompt=PromptTemplate(system="Be kind.")) as (served, http, asked):
        await http.post(CHAT, json=HELLO)
        served.prompt = None
        await http.post(CHAT, json=HELLO)
    assert [one["content"] for one in asked[0]["messages"]] == ["Be kind.", "hi"]
    assert asked[1] == HELLO


async def test_an_unknown_model_is_told_with_those_that_there_are():
    async with front(adapters=(DOCS,)) as (_, http, asked):
        answer = await http.post(CHAT, json={**HELLO, "model": "other"})
        await http.post(CHAT, json={**HELLO, "model": "docs"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "serves 'm', 'docs'" in answer.json()["error"]["message"]
    assert [one["model"] for one in asked] == ["docs"]


async def test_an_adapter_that_could_not_be_loaded_fails_alone():
    async with front(adapters=(DOCS, BROKEN)) as (_, http, _asked):
        answer = await http.post(CHAT, json={**HELLO, "model": "broken"})
        other = await http.post(CHAT, json=HELLO)
    assert (answer.status_code, other.status_code) == (503, 200)
    assert answer.json()["error"]["message"] == "adapter broken cannot be served: it is damaged"


async def test_a_card_of_a_model_is_one_of_vllms_list():
    async with front(adapters=(BROKEN,)) as (_, http, _asked):
        found, missing = await http.get("/v1/models/m"), await http.get("/v1/models/other")
        broken = await http.get("/v1/models/broken")
    assert (found.json()["id"], missing.status_code, broken.status_code) == ("m", 404, 503)


async def test_an_alias_is_listed_and_vllm_hears_the_name_that_it_knows():
    async with front(adapters=(DOCS,), names=ServedNames("m", {"m": "champion", "docs": "staging"})) as (
        served,
        http,
        asked,
    ):
        cards = (await http.get("/v1/models")).json()["data"]
        card = (await http.get("/v1/models/m@champion")).json()
        for name in ("m@champion", "docs@staging"):
            assert (await http.post(CHAT, json={**HELLO, "model": name})).status_code == 200
        served.names.aliases = {}
        refused = await http.post(CHAT, json={**HELLO, "model": "m@champion"})
    assert [(one["id"], one.get("alias")) for one in cards] == [("m", None), ("m@champion", "champion")]
    assert card == cards[1]
    assert [one["model"] for one in asked] == ["m", "docs"]
    assert refused.status_code == 404


async def test_a_prompt_is_counted_with_what_the_service_puts_before_it():
    limits = ServeLimits(max_prompt_tokens=9)
    async with front(limits=limits, prompt=PromptTemplate(system="12345678")) as (served, http, asked):
        refused = await http.post(CHAT, json=HELLO)
        served.prompt = PromptTemplate(system="1234567")
        answered = await http.post(CHAT, json=HELLO)
    assert (refused.status_code, answered.status_code) == (400, 200)
    assert refused.json()["error"]["param"] == "messages"
    assert "the prompt has 10 tokens, and this service takes at most 9" in refused.json()["error"]["message"]
    assert len(asked) == 1


async def test_what_vllm_refuses_to_count_is_refused_in_its_words():
    async with front(limits=ServeLimits(max_prompt_tokens=9)) as (_, http, _asked):
        answer = await http.post(CHAT, json={"model": "m", "messages": [{"content": "hi"}]})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "messages: role is missing")


async def test_an_answer_has_as_many_tokens_as_the_service_makes_or_as_the_context_has_room_for():
    long = {"model": "m", "messages": [{"role": "user", "content": "x" * 95}]}
    async with front(limits=ServeLimits(max_output_tokens=20)) as (_, http, asked):
        refused = await http.post(CHAT, json={**HELLO, "max_tokens": 21})
        for body in (HELLO, long, {**HELLO, "max_tokens": 3}):
            assert (await http.post(CHAT, json=body)).status_code == 200
    assert refused.json()["error"]["param"] == "max_tokens"
    assert [one.get("max_completion_tokens") for one in asked] == [20, 5, None]


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_object_is_refused(body):
    async with front() as (_, http, asked):
        answer = await http.post(CHAT, content=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert asked == []


async def test_a_body_beyond_the_limit_is_refused():
    async with front(limits=ServeLimits(max_body_bytes=1024)) as (_, http, _asked):
        answer = await http.post(CHAT, content=b"x" * 1025)
    assert answer.status_code == 413


async def test_a_request_that_takes_too_long_ends_with_an_error():
    limits = ServeLimits.model_construct(max_body_bytes=1024, request_timeout_seconds=0.2)
    async with front(limits=limits, seconds_a_chunk=5.0) as (_, http, _asked):
        whole = await http.post(CHAT, json=HELLO)
        stream = await http.post(CHAT, json={**HELLO, "stream": True})
    assert (whole.status_code, whole.json()["error"]["code"]) == (504, "request_timeout")
    events = stream.text.strip().split("\n\n")
    assert (len(events), events[-1]) == (3, "data: [DONE]")
    assert "request_timeout" in events[1]


async def test_a_failure_of_vllms_application_is_an_answer_and_the_next_request_is_answered():
    async with front() as (_, http, _asked):
        broken = await http.post(CHAT, json={**HELLO, "user": "breaks"})
        after = await http.post(CHAT, json=HELLO)
    assert (broken.status_code, after.status_code) == (500, 200)


async def test_a_request_without_an_id_gets_one_and_another_is_rays_to_repeat():
    async with front() as (_, http, _asked):
        refused = await http.get("/nothing")
        answered = await http.post(CHAT, json=HELLO, headers={"X-Request-Id": "ticket-17"})
    assert len(refused.headers["X-Request-Id"]) == 32
    assert "X-Request-Id" not in answered.headers


@pytest.mark.parametrize(("health", "status"), [(None, 200), ("the engine is dead", 503)])
async def test_readiness_is_what_vllm_says_and_liveness_is_not(health, status):
    async with front(health=health) as (_, http, _asked):
        ready, live = await http.get("/health/ready"), await http.get("/health/live")
    assert (ready.status_code, live.status_code) == (status, 200)


async def test_whoever_looks_for_metrics_here_is_told_where_they_are():
    async with front() as (_, http, _asked):
        answer = await http.get("/metrics")
    assert (answer.status_code, "8080" in answer.json()["error"]["message"]) == (404, True)


async def test_a_client_that_goes_away_ends_its_request():
    inner = make_vllm_app("m", seconds_a_chunk=60.0)
    app = build_front(
        inner, VllmService(ServedNames("m"), "models:/m/1", "generate", check_health=lambda: asyncio.sleep(0))
    )
    body = httpx.Request("POST", "http://test", json={**HELLO, "stream": True}).content
    messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b"", "http_version": "1.1"}
    async with asyncio.timeout(5):
        await app({**scope, "asgi": {"version": "3.0", "spec_version": "2.3"}}, receive, send)
