import asyncio
import json

import openai
import pytest

from plinth_workloads.errors import UserError
from unit.plinth_workloads.serving.asgi_service import CHAT, ask_and_leave, service, texts_until, tiny
from unit.plinth_workloads.serving.fake_engine import FakeEngine
from unit.plinth_workloads.serving.tiny_model import (
    CONTEXT_LENGTH,
    greedy_text,
    make_engine,
    make_model,
    make_tokenizer,
)

pytestmark = pytest.mark.anyio


async def test_models_are_listed_with_their_version():
    async with service(FakeEngine()) as (_, _, client):
        models = (await client.models.list()).data
        assert [(model.id, model.root, model.max_model_len) for model in models] == [("m", "models:/m/1", 64)]
        assert (await client.models.retrieve("m")).id == "m"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")


async def test_a_completion_is_what_the_model_says():
    async with service(tiny()) as (_, _, client):
        answer = await client.completions.create(model="m", prompt="abc", max_tokens=30, temperature=0)

    assert answer.choices[0].text == greedy_text(make_model(end_ids=None), "abc", 30)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 3,
        "completion_tokens": 30,
        "total_tokens": 33,
    }


async def test_several_prompts_and_choices_are_numbered_and_counted():
    async with service(tiny()) as (_, _, client):
        prompts = ["abc", "de"]
        answer = await client.completions.create(model="m", prompt=prompts, n=2, max_tokens=4, seed=3)
        again = await client.completions.create(model="m", prompt=prompts, n=2, max_tokens=4, seed=3)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [choice.text for choice in again.choices]
    assert answer.choices[0].text != answer.choices[1].text
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 16)


async def test_a_streamed_completion_is_the_whole_one_in_pieces():
    async with service(tiny()) as (_, _, client):
        whole = await client.completions.create(model="m", prompt="abc", max_tokens=30, temperature=0)
        stream = await client.completions.create(model="m", prompt="abc", max_tokens=30, temperature=0, stream=True)
        chunks = [chunk async for chunk in stream]

    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len(chunks) > 5


async def test_a_chat_is_answered_and_fills_the_context_by_default():
    async with service(tiny()) as (_, _, client):
        answer = await client.chat.completions.create(model="m", messages=CHAT)

    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.total_tokens == CONTEXT_LENGTH


async def test_a_streamed_chat_tells_its_role_once_and_usage_last():
    async with service(FakeEngine(("he", "llo"))) as (_, _, client):
        stream = await client.chat.completions.create(
            model="m", messages=CHAT, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]

    assert [chunk.choices[0].delta.role for chunk in chunks[:-1]] == ["assistant", None]
    assert [chunk.choices[0].delta.content for chunk in chunks[:-1]] == ["he", "llo"]
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (len("user:hi;"), 2)


async def test_the_bytes_of_a_stream_are_server_sent_events():
    body = {"model": "m", "prompt": "p", "stream": True}
    async with service(FakeEngine(("x",))) as (_, http, _):
        response = await http.post("/v1/completions", json=body)

    events = response.text.split("\n\n")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["text"] == "x"
    assert events[1:] == ["data: [DONE]", ""]


async def test_parameters_reach_the_engine():
    engine = FakeEngine()
    async with service(engine) as (_, _, client):
        await client.chat.completions.create(
            model="m",
            messages=[{"role": "developer", "content": [{"type": "text", "text": "x"}]}],
            max_completion_tokens=5,
            temperature=0.5,
            top_p=0.25,
            seed=9,
            stop=["\n", "END"],
            user="me",
            presence_penalty=0.5,
            frequency_penalty=-1,
            logit_bias={"7": 3},
            logprobs=True,
            top_logprobs=2,
            extra_body={"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.2},
        )

    (request,) = engine.requests
    assert bytes(request.prompt_ids) == b"system:x;"
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (5, 0.5, 0.25, 9)
    assert sampling.stop == ("\n", "END")
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (40, 0.05, 1.2)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.logit_bias) == (0.5, -1, ((7, 3.0),))
    assert sampling.num_logprobs == 2


async def test_a_completion_tells_how_likely_each_token_was_and_where_it_begins():
    async with service(tiny()) as (_, _, client):
        answer = await client.completions.create(model="m", prompt="abc", max_tokens=8, temperature=0, logprobs=2)
        plain = await client.completions.create(model="m", prompt="abc", max_tokens=8, temperature=0)

    told = answer.choices[0].logprobs
    assert plain.choices[0].logprobs is None
    assert len(told.tokens) == len(told.top_logprobs) == 8
    assert told.text_offset == [sum(map(len, told.tokens[:index])) for index in range(8)]
    assert told.token_logprobs == [max(top.values()) for top in told.top_logprobs]
    assert all(logprob <= 0 for logprob in told.token_logprobs)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_tells_how_likely_each_token_was_with_its_bytes(stream):
    asked = {"model": "m", "messages": CHAT, "max_tokens": 12, "temperature": 0}
    async with service(tiny()) as (_, _, client):
        answer = await client.chat.completions.create(**asked, logprobs=True, top_logprobs=3, stream=stream)
        if stream:
            told = [token async for chunk in answer for token in chunk.choices[0].logprobs.content]
        else:
            told = answer.choices[0].logprobs.content

    assert len(told) == 12
    for token in told:
        assert token.top_logprobs[0].model_dump() == token.model_dump(exclude={"top_logprobs"})
        assert token.bytes == (None if "\ufffd" in token.token else list(token.token.encode()))
        assert len(token.top_logprobs) == 3


async def test_a_bias_decides_what_is_said():
    async with service(tiny()) as (_, _, client):
        asked = {"model": "m", "prompt": "abc", "max_tokens": 5, "temperature": 0}
        answer = await client.completions.create(**asked, logit_bias={"65": 100}, frequency_penalty=0)
        varied = await client.completions.create(**asked, logit_bias={"65": 100, "66": 99}, frequency_penalty=1.5)

    assert len(set(answer.choices[0].text)) == 1
    assert len(set(varied.choices[0].text)) == 2


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code", "says"),
    [
        pytest.param("completions", {"model": "x"}, 404, "model", "model_not_found", "'x'", id="unknown model"),
        pytest.param("completions", {"echo": True}, 400, "echo", "unsupported_parameter", "echo", id="unsupported"),
        pytest.param("completions", {"temperature": 3}, 400, "temperature", None, "less than", id="out of bounds"),
        pytest.param(
            "completions", {"logit_bias": {"999": 1}}, 400, "logit_bias", "invalid_value", "999", id="unknown token"
        ),
        pytest.param("completions", {"prompt": None}, 400, "prompt", None, "required", id="no prompt"),
        pytest.param("completions", {"max_tokens": 64}, 400, None, "context_length_exceeded", "shorten", id="too long"),
        pytest.param(
            "chat/completions",
            {"messages": [{"role": "tool", "content": "x"}]},
            400,
            None,
            "invalid_prompt",
            "template",
            id="refused by the template",
        ),
    ],
)
async def test_bad_requests_are_answered_in_openai_s_shape(path, body, status, param, code, says):
    valid = {"model": "m", "prompt": "p"} if path == "completions" else {"model": "m"}
    async with service(tiny(context_length=64)) as (_, http, _):
        response = await http.post(f"/v1/{path}", json={**valid, **body})

    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]


async def test_a_model_without_a_chat_template_is_told_from_one_that_refuses():
    async with service(lambda uri: make_engine(tokenizer=make_tokenizer(chat_template=None))) as (_, http, _):
        refused = await http.post("/v1/chat/completions", json={"model": "m", "messages": CHAT})
        text = await http.post("/v1/completions", json={"model": "m", "prompt": "p"})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], text.status_code) == (400, "no_chat_template", 200)
    assert "use /v1/completions" in error["message"]


async def test_what_is_not_json_and_not_served_is_answered_in_openai_s_shape():
    async with service(FakeEngine()) as (_, http, _):
        not_json = await http.post("/v1/completions", content="{", headers={"content-type": "application/json"})
        not_served = await http.post("/v1/images/generations", json={})

    assert (not_json.status_code, not_json.json()["error"]["message"]) == (400, "the request's body is not JSON")
    assert (not_served.status_code, not_served.json()["error"]["type"]) == (404, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_too_many_requests_are_turned_away_and_may_come_back(stream):
    async with service(tiny(max_batch_size=1, max_waiting=0)) as (_, _, client):
        results = await asyncio.gather(
            *(client.completions.create(model="m", prompt="p", max_tokens=100, stream=stream) for _ in range(3)),
            return_exceptions=True,
        )

    refused = [result for result in results if isinstance(result, openai.RateLimitError)]
    assert len(refused) == 2
    assert refused[0].response.headers["retry-after"] == "1"
    assert refused[0].code == "rate_limit_exceeded"


async def test_a_failure_before_the_first_token_is_a_status_and_after_it_an_event():
    async with service(FakeEngine(("a", "b"), fails_after=1)) as (_, http, client):
        with pytest.raises(openai.InternalServerError, match="broken"):
            await client.completions.create(model="m", prompt="p")
        stream = await client.completions.create(model="m", prompt="p", stream=True)
        with pytest.raises(openai.APIError, match="broken"):
            [chunk async for chunk in stream]
        state = (await http.get("/-/state")).json()
    async with service(FakeEngine(fails_after=0)) as (_, _, client):
        with pytest.raises(openai.InternalServerError):
            await client.completions.create(model="m", prompt="p", stream=True)

    assert (state["requests"], state["errors"]) == (2, 2)


async def test_an_engine_s_bug_is_answered_without_its_details(monkeypatch):
    engine = FakeEngine()
    monkeypatch.setattr(engine, "encode", lambda text: 1 / 0)
    async with service(engine) as (_, _, client):
        with pytest.raises(openai.InternalServerError, match="the server failed; its log says why"):
            await client.completions.create(model="m", prompt="p")


async def test_health_says_why_there_is_no_model():
    def fail(uri):
        raise UserError("ModelNotFound", "there is no such model")

    async with service(fail) as (_, http, client):
        health = await http.get("/health")
        state = (await http.get("/-/state")).json()
        with pytest.raises(openai.InternalServerError, match="there is no such model") as raised:
            await client.completions.create(model="m", prompt="p")
        assert (await client.models.list()).data[0].root == "models:/m/1"

    assert (health.status_code, health.json()["status"]) == (503, "failed")
    assert "there is no such model" in health.json()["message"]
    assert (raised.value.status_code, raised.value.code) == (503, "model_not_ready")
    assert (state["loaded"], state["loadError"]) == (False, "there is no such model")


async def test_health_follows_the_engine():
    engine = FakeEngine()
    async with service(engine) as (_, http, _):
        assert (await http.get("/health")).status_code == 200
        engine.healthy = False
        health = await http.get("/health")

    assert (health.status_code, health.json()["status"]) == (503, "unhealthy")


async def test_the_process_lives_before_it_is_ready_and_is_ready_when_it_is_healthy():
    engine = FakeEngine()
    async with service(engine) as (_, http, _):
        engine.healthy = False
        not_ready = [(await http.get(f"/health{part}")).status_code for part in ("", "/ready", "/live")]
        engine.healthy = True
        answers = [await http.get(f"/health{part}") for part in ("", "/ready", "/live")]

    assert not_ready == [503, 503, 200]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert answers[0].json() == answers[1].json()


async def test_state_counts_requests_and_tokens():
    async with service(tiny()) as (served, http, client):
        await client.completions.create(model="m", prompt="p", max_tokens=5, n=2)
        state = (await http.get("/-/state")).json()

    del state["running"]  # a row is let go of after its last text was handed on
    assert state == {
        "name": "m",
        "replicaId": served.replica_id,
        "modelUri": "models:/m/1",
        "targetUri": "models:/m/1",
        "loaded": True,
        "adapters": [],
        "promptHash": "",
        "contextLength": CONTEXT_LENGTH,
        "waiting": 0,
        "requests": 1,
        "errors": 0,
        "tokens": 10,
    }


async def test_a_new_version_takes_over_under_load_without_a_failed_request():
    def make_version(uri):
        return make_engine(make_model(seed=int(uri[-1]), end_ids=None))

    async with service(make_version) as (served, _, client):
        texts = await texts_until(served, client, "models:/m/2", max_tokens=20)
    assert set(texts) == {greedy_text(make_model(seed=seed, end_ids=None), "abc", 20) for seed in (1, 2)}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_its_request(stream):
    engine = FakeEngine(("a", "b"))
    await ask_and_leave(engine, "/v1/completions", prompt="p", stream=stream)
    assert engine.num_running == 0
