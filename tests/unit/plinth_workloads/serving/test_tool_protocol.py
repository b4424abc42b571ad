import json

import pytest
from pydantic import ValidationError

from plinth_workloads.serving.engine import InvalidParameter, ToolCall
from plinth_workloads.serving.protocol import ChatBody
from unit.plinth_workloads.serving.tools import TOOLS, tool


def chat(*messages, **parameters):
    return ChatBody.model_validate(
        {"model": "m", "messages": list(messages) or [{"role": "user", "content": "x"}], **parameters}
    )


def named(name):
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("parameters", [{}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}])
def test_without_tools_or_by_choice_nothing_is_called(parameters):
    body = chat(**parameters)

    assert body.tool_use is None
    assert body.structure is None


def test_by_default_the_model_chooses_and_the_template_is_told_what_the_client_said():
    use = chat(tools=TOOLS).tool_use

    assert list(use.tools) == TOOLS
    assert (use.names, use.named, use.structure, use.only_one) == ({"weather", "time"}, None, None, False)
    assert chat(tools=TOOLS, tool_choice="auto", parallel_tool_calls=False).tool_use.only_one


def test_a_named_function_is_the_schema_of_its_arguments():
    body = chat(tools=TOOLS, tool_choice=named("weather"))

    assert body.tool_use.named == "weather"
    assert (body.structure.kind, body.structure.param) == ("json_schema", "tools")
    assert json.loads(body.structure.text) == TOOLS[0]["function"]["parameters"]


def test_a_function_without_parameters_takes_none():
    structure = chat(tools=TOOLS, tool_choice=named("time")).structure

    assert json.loads(structure.text) == {"type": "object", "properties": {}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("parameters", "param", "says"),
    [
        ({"tool_choice": "required"}, "tool_choice", "tools has no function"),
        ({"tool_choice": named("f")}, "tool_choice", "tools has no function"),
        ({"tools": TOOLS, "tool_choice": named("f")}, "tool_choice", "tools has no function 'f'"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools", "the same name; give each its own"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format", "leave one out"),
        ({"tools": TOOLS, "structured_outputs": {"regex": "a"}}, "structured_outputs", "leave one out"),
    ],
)
def test_contradictions_are_refused_with_the_parameter(parameters, param, says):
    with pytest.raises(InvalidParameter, match=says) as refused:
        assert chat(**parameters).structure

    assert refused.value.param == param


@pytest.mark.parametrize(
    ("parameters", "place", "says"),
    [
        ({"tools": [{"type": "code"}]}, ("tools", 0, "type"), "function"),
        ({"tools": [{"type": "function"}]}, ("tools", 0, "function"), "required"),
        ({"tools": [tool("a b")]}, ("tools", 0, "function", "name"), "pattern"),
        ({"tools": [tool(f"f{number}") for number in range(129)]}, ("tools",), "at most 128"),
        ({"tool_choice": "any"}, ("tool_choice",), '"none", "auto", "required" or'),
        ({"tool_choice": {"type": "function"}}, ("tool_choice",), '"none", "auto", "required" or'),
    ],
)
def test_what_is_no_tool_is_refused_in_its_place(parameters, place, says):
    with pytest.raises(ValidationError) as refused:
        chat(**parameters)

    error = refused.value.errors()[0]
    assert error["loc"] == place
    assert says in error["msg"]


def test_calls_of_earlier_turns_have_their_arguments_as_objects():
    function = {"name": "weather", "arguments": '{"city": "Rome"}'}
    body = chat({"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]})

    assert [call.call for call in body.messages[0].tool_calls] == [ToolCall("1", "weather", {"city": "Rome"})]


@pytest.mark.parametrize("arguments", ["", "[1]", "{", "[" * 100_000, 3])
def test_arguments_that_are_no_object_are_refused(arguments):
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(ValidationError, match="must be a JSON object in a string"):
        chat({"role": "assistant", "tool_calls": [call]})
