"""What one request may ask for."""

import asyncio
import json
import logging

import pytest

from plinth_api.run import ServeLimits
from plinth_workloads.serving.asgi import build_asgi
from plinth_workloads.serving.engine import InvalidParameter
from plinth_workloads.serving.limits import RequestTimedOut, check_prompt, max_tokens_of, within
from plinth_workloads.serving.protocol import ChatBody, CompletionBody
from plinth_workloads.serving.served_names import ServedNames
from unit.plinth_workloads.serving.asgi_service import CHAT, service
from unit.plinth_workloads.serving.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


def chat(**asked):
    return ChatBody.model_validate({"model": "m", "messages": CHAT, **asked})


def completion(**asked):
    return CompletionBody.model_validate({"model": "m", "prompt": "p", **asked})


@pytest.mark.parametrize(
    ("body", "most", "expected"),
    [
        pytest.param(chat(), None, 100, id="a chat fills the context"),
        pytest.param(completion(), None, 16, id="a completion is short"),
        pytest.param(chat(), 40, 40, id="a chat that does not say gets the limit"),
        pytest.param(chat(), 400, 100, id="or the context"),
        pytest.param(completion(), 8, 8, id="a completion that does not say stays within it"),
        pytest.param(chat(max_tokens=40), 40, 40, id="what is asked for"),
        pytest.param(chat(max_completion_tokens=7, max_tokens=9), 40, 7, id="by its newer name"),
        pytest.param(completion(max_tokens=500), None, 500, id="without a limit the engine decides"),
    ],
)
def test_an_answer_has_what_is_asked_for_or_what_there_is(body, most, expected):
    assert max_tokens_of(ServeLimits(max_output_tokens=most), body, num_free=100) == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [(chat(max_tokens=41), "max_tokens"), (chat(max_completion_tokens=41), "max_completion_tokens")],
)
def test_more_than_the_limit_is_refused_by_the_name_that_was_used(body, param):
    with pytest.raises(InvalidParameter, match=f"{param}: 41 tokens are asked for, .* at most 40") as raised:
        max_tokens_of(ServeLimits(max_output_tokens=40), body, num_free=100)
    assert raised.value.param == param


def test_a_prompt_may_be_as_long_as_the_limit_and_not_longer():
    check_prompt(ServeLimits(max_prompt_tokens=3), 3, param="prompt")
    check_prompt(ServeLimits(), 10**6, param="prompt")
    with pytest.raises(InvalidParameter, match=r"prompt: the prompt has 4 tokens, .* at most 3; shorten it"):
        check_prompt(ServeLimits(max_prompt_tokens=3), 4, param="prompt")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        pytest.param("completions", {"prompt": "12345678901"}, "prompt", id="prompt"),
        pytest.param("completions", {"prompt": ["a", "12345678901"]}, "prompt", id="one of the prompts"),
        pytest.param("chat/completions", {"messages": CHAT * 2}, "messages", id="chat"),
        pytest.param("chat/completions", {"messages": CHAT, "max_tokens": 21}, "max_tokens", id="answer"),
    ],
)
async def test_limits_that_change_count_for_the_next_request(path, body, param):
    async with service(FakeEngine()) as (served, http, _):
        before = await http.post(f"/v1/{path}", json={"model": "m", **body})
        served.limits = ServeLimits(max_prompt_tokens=10, max_output_tokens=20)
        after = await http.post(f"/v1/{path}", json={"model": "m", **body})

    assert (before.status_code, after.status_code) == (200, 400)
    error = after.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, "invalid_value", "invalid_request_error")


async def test_a_chat_that_does_not_say_gets_the_limit():
    engine = FakeEngine()
    async with service(engine) as (served, _, client):
        served.limits = ServeLimits(max_output_tokens=20)
        await client.chat.completions.create(model="m", messages=CHAT)
    assert engine.requests[0].sampling.max_tokens == 20


async def test_more_prompts_than_a_request_may_have_are_refused_before_any_is_read():
    engine = FakeEngine()
    async with service(engine) as (_, http, _):
        response = await http.post("/v1/completions", json={"model": "m", "prompt": ["a"] * 129})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
    assert engine.requests == []


async def test_a_request_that_takes_too_long_is_told_so_and_frees_its_row():
    engine = FakeEngine()
    engine.gate.clear()
    async with service(engine) as (served, http, _):
        served.limits = ServeLimits(request_timeout_seconds=0)
        response = await http.post("/v1/completions", json={"model": "m", "prompt": "p"})
        assert engine.num_running == 0
        state = (await http.get("/-/state")).json()

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (504, "request_timeout", "server_error")
    assert "more than the 0 s that it may" in error["message"]
    assert response.headers["X-Should-Retry"] == "false"
    assert (state["requests"], state["errors"]) == (1, 1)


async def test_a_stream_that_takes_too_long_ends_with_an_error_and_frees_its_row():
    engine = FakeEngine()
    engine.gate.clear()
    async with service(engine) as (served, http, _):
        served.limits = ServeLimits(request_timeout_seconds=1)
        response = await http.post("/v1/completions", json={"model": "m", "prompt": "p", "stream": True})
        assert engine.num_running == 0

    text, error, done, _ = response.text.split("\n\n")
    assert response.status_code == 200
    assert json.loads(text.removeprefix("data: "))["choices"][0]["text"] == "a"
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "request_timeout"
    assert done == "data: [DONE]"


async def test_a_client_that_does_not_read_its_stream_is_given_up_in_time(caplog):
    caplog.set_level(logging.WARNING)
    body = json.dumps({"model": "m", "prompt": "p", "stream": True}).encode()
    inbox = [{"type": "http.request", "body": body}]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "root_path": ""}
    scope["headers"] = [(b"content-type", b"application/json"), (b"x-request-id", b"17")]
    never = asyncio.Event()

    async def receive():
        return inbox.pop() if inbox else await never.wait()

    async def send(message):
        if message["type"] == "http.response.body":
            await never.wait()

    async with service(FakeEngine()) as (served, _, _):
        served.limits = ServeLimits(request_timeout_seconds=1)
        await asyncio.wait_for(build_asgi(served, ServedNames("m"))(scope, receive, send), timeout=20)

    assert [record.getMessage() for record in caplog.records] == [
        "request 17: its client has not read the answer in time"
    ]


async def test_a_timeout_of_what_makes_the_items_is_not_taken_for_the_request_s():
    async def items():
        yield 1
        raise TimeoutError("another")

    inside = within(items(), seconds=60)
    assert await anext(inside) == 1
    with pytest.raises(TimeoutError, match="another") as raised:
        await anext(inside)
    assert not isinstance(raised.value, RequestTimedOut)


async def test_what_items_are_made_from_is_closed_with_them():
    closed = asyncio.Event()

    async def items():
        try:
            yield 1
        finally:
            closed.set()

    inside = within(items(), seconds=60)
    assert await anext(inside) == 1
    await inside.aclose()
    assert closed.is_set()
