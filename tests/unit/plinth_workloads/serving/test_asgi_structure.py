"""What a text has to look like, through OpenAI's client."""

import json

import jsonschema
import openai
import pytest

from unit.plinth_workloads.serving.asgi_service import CHAT, service, tiny

pytestmark = pytest.mark.anyio

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "part", "schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_is_answered_by_the_schema(stream):
    asked = {"model": "m", "messages": CHAT, "response_format": FORMAT, "seed": 1, "n": 2}
    async with service(tiny(context_length=1024)) as (_, _, client):
        answer = await client.chat.completions.create(**asked, stream=stream)
        if stream:
            chunks = [chunk async for chunk in answer]
            texts = ["".join(c.choices[0].delta.content for c in chunks if c.choices[0].index == i) for i in (0, 1)]
            reasons = [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason]
        else:
            texts = [choice.message.content for choice in answer.choices]
            reasons = [choice.finish_reason for choice in answer.choices]

    assert reasons == ["stop", "stop"]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


async def test_a_completion_is_what_the_structure_says():
    async with service(tiny(context_length=1024)) as (_, _, client):
        asked = {"model": "m", "prompt": "p", "max_tokens": 300}
        chosen = await client.completions.create(**asked, extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
        matched = await client.completions.create(**asked, extra_body={"structured_outputs": {"regex": "[a-f]{5}"}})
        bound = await client.completions.create(**asked, extra_body={"structured_outputs": {"json": SCHEMA}})

    assert chosen.choices[0].text in ("yes", "no")
    assert len(matched.choices[0].text) == 5
    jsonschema.validate(json.loads(bound.choices[0].text), SCHEMA)


async def test_any_object_begins_as_one():
    async with service(tiny()) as (_, _, client):
        answer = await client.chat.completions.create(
            model="m", messages=CHAT, max_tokens=20, response_format={"type": "json_object"}
        )

    assert answer.choices[0].message.content.startswith("{")


@pytest.mark.parametrize(
    ("asked", "param", "says"),
    [
        (
            {"response_format": {**FORMAT, "json_schema": {"name": "n", "schema": {"type": "x"}}}},
            "response_format",
            "x",
        ),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "unclosed group"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
            "both",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_kept_to_is_refused_with_the_parameter(asked, param, says, stream):
    async with service(tiny()) as (_, _, client):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model="m", prompt="p", stream=stream, extra_body=asked)
        assert (await client.completions.create(model="m", prompt="p")).choices[0].finish_reason == "length"

    assert (refused.value.param, refused.value.code) == (param, "invalid_value")
    assert says in refused.value.message


async def test_a_schema_that_is_nested_without_end_is_answered_in_openai_s_shape():
    schema = '{"items":' * 20_000 + "{}" + "}" * 20_000
    body = f'{{"model": "m", "prompt": "p", "structured_outputs": {{"json": {schema}}}}}'
    async with service(tiny()) as (_, http, _):
        response = await http.post("/v1/completions", content=body, headers={"content-type": "application/json"})

    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
