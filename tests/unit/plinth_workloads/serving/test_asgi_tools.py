"""Functions that a chat calls, through OpenAI's client."""

import json

import jsonschema
import openai
import pytest

from unit.plinth_workloads.serving.asgi_service import CHAT, service, tiny
from unit.plinth_workloads.serving.fake_engine import FakeEngine
from unit.plinth_workloads.serving.tiny_model import make_engine, make_model, make_tokenizer
from unit.plinth_workloads.serving.tools import TOOL_TEMPLATE, TOOLS

pytestmark = pytest.mark.anyio

WEATHER = TOOLS[0]["function"]["parameters"]
NAMED = {"type": "function", "function": {"name": "weather"}}
CALLING = ("I ", "see.\n<tool", '_call>{"name": "weather", "argu', 'ments": {"city": "Rome"}}</tool_call>', "")


def knowing(uri):
    """A random model whose template knows tools, with room for some whitespace."""
    tokenizer = make_tokenizer(chat_template=TOOL_TEMPLATE, ends=False)
    return make_engine(make_model(end_ids=None), tokenizer, context_length=1024)


async def gathered(stream):
    """The message that the pieces of a stream make, and its finish reasons."""
    message = {"content": "", "calls": {}}
    reasons = []
    async for chunk in stream:
        (choice,) = chunk.choices
        message["content"] += choice.delta.content or ""
        for call in choice.delta.tool_calls or ():
            known = message["calls"].setdefault(
                call.index, {"id": call.id, "name": call.function.name, "arguments": ""}
            )
            known["arguments"] += call.function.arguments
        reasons.append(choice.finish_reason)
    return message, reasons


@pytest.mark.parametrize("stream", [False, True])
async def test_a_named_function_is_called_with_arguments_that_its_schema_allows(stream):
    async with service(knowing) as (_, _, client):
        asked = {"model": "m", "messages": CHAT, "tools": TOOLS, "tool_choice": NAMED, "stream": stream, "seed": 3}
        answer = await client.chat.completions.create(**asked)
        if stream:
            message, reasons = await gathered(answer)
            (call,) = message["calls"].values()
            name, arguments, reason = call["name"], call["arguments"], reasons[-1]
            assert len(reasons) > 10
            assert message["content"] == ""
        else:
            (choice,) = answer.choices
            (call,) = choice.message.tool_calls
            name, arguments, reason = call.function.name, call.function.arguments, choice.finish_reason
            assert choice.message.content is None
            assert call.id.startswith("call-")

    assert (name, reason) == ("weather", "tool_calls")
    jsonschema.validate(json.loads(arguments), WEATHER)


@pytest.mark.parametrize("stream", [False, True])
async def test_where_a_call_is_required_one_of_the_functions_is_called(stream):
    called = set()
    async with service(knowing) as (_, _, client):
        for seed in range(4):
            asked = {"messages": CHAT, "tools": TOOLS, "tool_choice": "required", "seed": seed, "temperature": 2}
            answer = await client.chat.completions.create(model="m", stream=stream, **asked)
            if stream:
                message, reasons = await gathered(answer)
                (call,) = message["calls"].values()
                name, arguments, reason = call["name"], call["arguments"], reasons[-1]
            else:
                (call,) = answer.choices[0].message.tool_calls
                name, arguments, reason = call.function.name, call.function.arguments, answer.choices[0].finish_reason
            assert reason == "tool_calls"
            jsonschema.validate(json.loads(arguments), WEATHER if name == "weather" else {"maxProperties": 0})
            called.add(name)

    assert called <= {"weather", "time"}


async def test_calls_that_the_model_chooses_are_told_from_its_text():
    engine = FakeEngine(CALLING)
    async with service(engine) as (_, _, client):
        answer = await client.chat.completions.create(model="m", messages=CHAT, tools=TOOLS)
        stream = await client.chat.completions.create(model="m", messages=CHAT, tools=TOOLS, stream=True)
        message, reasons = await gathered(stream)
        told = list(engine.tools)
        without = await client.chat.completions.create(model="m", messages=CHAT, tools=TOOLS, tool_choice="none")

    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert (choice.message.content, choice.finish_reason) == ("I see.", "tool_calls")
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
    assert message["content"] == "I see."
    assert [call["name"] for call in message["calls"].values()] == ["weather"]
    assert reasons == [None, None, None, "tool_calls"]
    assert told == TOOLS
    assert without.choices[0].message.content == "".join(CALLING)
    assert without.choices[0].message.tool_calls is None
    assert engine.tools == ()


async def test_a_stream_without_a_call_is_text_with_its_probabilities():
    asked = {"model": "m", "messages": CHAT, "temperature": 0, "max_tokens": 30, "logprobs": True}
    async with service(knowing) as (_, _, client):
        answer = await client.chat.completions.create(**asked, tools=TOOLS)
        stream = await client.chat.completions.create(**asked, tools=TOOLS, stream=True)
        chunks = [chunk async for chunk in stream]

    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == answer.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    told = [token for chunk in chunks for token in chunk.choices[0].logprobs.content]
    whole = answer.choices[0].logprobs.content
    assert [token.token for token in told] == [token.token for token in whole]
    assert [token.logprob for token in told] == pytest.approx([token.logprob for token in whole], abs=1e-4)
    assert len(told) == 30


async def test_arguments_that_are_cut_off_end_with_length():
    async with service(knowing) as (_, _, client):
        answer = await client.chat.completions.create(
            model="m", messages=CHAT, tools=TOOLS, tool_choice=NAMED, max_tokens=2
        )

    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls[0].function.arguments.startswith("{")


@pytest.mark.parametrize(
    ("version", "asked", "param", "says"),
    [
        pytest.param(tiny(), {"tools": TOOLS}, "tools", "template knows no tools; leave them out", id="template"),
        pytest.param(knowing, {"tool_choice": "required"}, "tool_choice", "tools has no function", id="no tools"),
        pytest.param(
            knowing,
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
                "tool_choice": "required",
            },
            "tools",
            "Unimplemented keys",
            id="a schema that is not understood",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_tools_that_cannot_be_called_are_refused_with_the_parameter(version, asked, param, says, stream):
    async with service(version) as (_, _, client):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="m", messages=CHAT, stream=stream, **asked)

    assert (refused.value.param, refused.value.code) == (param, "invalid_value")
    assert says in refused.value.message
