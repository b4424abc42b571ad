import json

import pytest
from pydantic import ValidationError

from plinth_workloads.serving.engine import InvalidParameter, StructuredOutput
from plinth_workloads.serving.protocol import ChatBody, CompletionBody

SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}


def completion(**parameters):
    return CompletionBody.model_validate({"model": "m", "prompt": "p", **parameters})


def chat(**parameters):
    return ChatBody.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}], **parameters})


@pytest.mark.parametrize("body", [completion, chat])
@pytest.mark.parametrize(
    ("parameters", "structure"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ("json_schema", '{"type": "object"}', "response_format")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            ("json_schema", json.dumps(SCHEMA), "response_format"),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, ("json_schema", json.dumps(SCHEMA), "structured_outputs")),
        ({"structured_outputs": {"regex": "a+"}}, ("regex", "a+", "structured_outputs")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, ("choice", '["a", "b"]', "structured_outputs")),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, ("grammar", 'start: "a"', "structured_outputs")),
        (
            {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}},
            ("regex", "a", "structured_outputs"),
        ),
    ],
)
def test_all_ways_to_say_how_a_text_looks_are_read(body, parameters, structure):
    assert body(**parameters).structure == (None if structure is None else StructuredOutput(*structure))


@pytest.mark.parametrize(
    ("parameters", "place", "says"),
    [
        ({"response_format": {"type": "xml"}}, ("response_format", "type"), "json_object"),
        ({"response_format": {"type": "json_schema"}}, ("response_format",), "need each other"),
        (
            {"response_format": {"type": "json_object", "json_schema": {"name": "n", "schema": {}}}},
            ("response_format",),
            "need each other",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            ("response_format", "json_schema", "schema"),
            "required",
        ),
        ({"structured_outputs": {}}, ("structured_outputs",), "exactly one"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, ("structured_outputs",), "exactly one"),
        ({"structured_outputs": {"choice": []}}, ("structured_outputs", "choice"), "at least 1"),
        ({"structured_outputs": {"choice": [""]}}, ("structured_outputs", "choice", 0), "at least 1"),
        ({"structured_outputs": {"choice": ["a"] * 1025}}, ("structured_outputs", "choice"), "at most 1024"),
        ({"structured_outputs": {"structural_tag": "{}"}}, ("structured_outputs", "structural_tag"), "not permitted"),
    ],
)
def test_what_does_not_say_how_a_text_looks_is_refused_in_its_place(parameters, place, says):
    with pytest.raises(ValidationError) as refused:
        completion(**parameters)

    error = refused.value.errors()[0]
    assert error["loc"] == place
    assert says in error["msg"]


def test_a_text_looks_one_way_only():
    body = completion(response_format={"type": "json_object"}, structured_outputs={"regex": "a"})
    with pytest.raises(InvalidParameter, match="leave one out") as refused:
        assert body.structure

    assert refused.value.param == "structured_outputs"
