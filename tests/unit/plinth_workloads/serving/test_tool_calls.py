import json

import pytest

from plinth_workloads.serving.protocol import ChatBody
from plinth_workloads.serving.tool_calls import ToolCallReader
from unit.plinth_workloads.serving.tools import TOOLS

WEATHER = '{"name": "weather", "arguments": {"city": "Rome"}}'
TIME = '{"name": "time", "arguments": {}}'


def reader(**parameters):
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": TOOLS, **parameters}
    return ToolCallReader(ChatBody.model_validate(body).tool_use)


def read(pieces, **parameters):
    """The text and the calls in the pieces of an answer, each call with its name and arguments."""
    reading = reader(**parameters)
    said = [*(reading.push(piece) for piece in pieces), reading.finish()]
    calls = [call for each in said for call in each.calls]
    assert reading.num_calls == len(calls)
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls)
    named = [(call.function.name, json.loads(call.function.arguments)) for call in calls]
    return "".join(each.text for each in said), named


@pytest.mark.parametrize(
    ("answer", "text", "calls"),
    [
        pytest.param("plain text", "plain text", [], id="text"),
        pytest.param("", "", [], id="nothing"),
        pytest.param(" \n", " \n", [], id="whitespace"),
        pytest.param(f"<tool_call>{WEATHER}</tool_call>", "", [("weather", {"city": "Rome"})], id="one"),
        pytest.param(
            f"Let me see.\n<tool_call>\n{WEATHER}\n</tool_call>\n<tool_call>\n{TIME}\n</tool_call>\n",
            "Let me see.",
            [("weather", {"city": "Rome"}), ("time", {})],
            id="two after a text",
        ),
        pytest.param(f"<tool_call>{TIME}</tool_call> done", " done", [("time", {})], id="text after it"),
        pytest.param(f"<tool_call>{TIME}", "", [("time", {})], id="not closed"),
        pytest.param(TIME, "", [("time", {})], id="nothing but an object"),
        pytest.param(
            ' {"type": "function", "name": "weather", "parameters": {"city": "Oslo"}}\n',
            "",
            [("weather", {"city": "Oslo"})],
            id="Llama 3",
        ),
        pytest.param(
            f" [{WEATHER}, {TIME}]",
            "",
            [("weather", {"city": "Rome"}), ("time", {})],
            id="Mistral, whose mark is no text",
        ),
        pytest.param(f"[TOOL_CALLS] [{WEATHER}]", "", [("weather", {"city": "Rome"})], id="Mistral"),
        pytest.param(f"[TOOL_CALLS]{TIME}", "", [("time", {})], id="one without a list"),
        pytest.param(f"[{TIME}, 1]", f"[{TIME}, 1]", [], id="a list that has other things"),
        pytest.param("[1] is the first", "[1] is the first", [], id="a text in brackets"),
        pytest.param("[TOOL_CALLS] of which", "[TOOL_CALLS] of which", [], id="a mark alone"),
        pytest.param("[]", "[]", [], id="an empty list"),
        pytest.param(f"<tool_call>[{TIME}]</tool_call>", f"<tool_call>[{TIME}]</tool_call>", [], id="a list in a tag"),
        pytest.param(f"See {TIME}", f"See {TIME}", [], id="an object within text"),
        pytest.param('{"name": "f", "arguments": {}}', '{"name": "f", "arguments": {}}', [], id="unknown function"),
        pytest.param('{"name": "time"}', '{"name": "time"}', [], id="no arguments"),
        pytest.param('{"name": "time", "arguments": 1}', '{"name": "time", "arguments": 1}', [], id="not an object"),
        pytest.param('{"name": ["time"]}', '{"name": ["time"]}', [], id="a name that is none"),
        pytest.param('{"name": "tim', '{"name": "tim', [], id="cut off"),
        pytest.param('{"answer": 42}', '{"answer": 42}', [], id="another object"),
        pytest.param("<tool_call>{]</tool_call> x", "<tool_call>{]</tool_call> x", [], id="not JSON"),
        pytest.param("<tool_call>" + "[" * 20_000, "<tool_call>" + "[" * 20_000, [], id="too deep"),
        pytest.param("a <tool_ca", "a <tool_ca", [], id="half a tag"),
        pytest.param(
            f"<tool_call>no</tool_call><tool_call>{TIME}</tool_call>",
            "<tool_call>no</tool_call>",
            [("time", {})],
            id="a call after what is none",
        ),
    ],
)
def test_calls_are_told_from_text_whole_and_letter_by_letter(answer, text, calls):
    assert read([answer]) == (text, calls)
    assert read(answer) == (text, calls)


def test_text_streams_at_once_and_is_held_only_while_it_may_be_a_call():
    reading = reader()
    pieces = ["Hel", "lo ", "a <b", "> <tool", "_box>", "{", '"na', "me"]

    assert [reading.push(piece).text for piece in pieces] == [
        "Hel",
        "lo",
        " a <b",
        ">",
        " <tool_box>",
        "{",
        '"na',
        "me",
    ]


def test_an_object_that_cannot_be_a_call_streams_as_soon_as_that_is_clear():
    reading = reader()

    assert [reading.push(piece).text for piece in ["{", '"n', 'umber"', ": 1}"]] == ["", "", '{"number"', ": 1}"]


def test_a_list_that_cannot_be_of_calls_streams_as_soon_as_that_is_clear():
    reading = reader()

    assert [reading.push(piece).text for piece in ["[", "TOO", "T", " [1"]] == ["", "", "[TOOT", " [1"]


def test_a_client_that_wants_one_call_gets_the_first():
    twice = f"<tool_call>{WEATHER}</tool_call><tool_call>{TIME}</tool_call>"

    assert read([twice], parallel_tool_calls=False) == ("", [("weather", {"city": "Rome"})])


def test_the_arguments_of_a_named_function_stream_as_they_come():
    reading = reader(tool_choice={"type": "function", "function": {"name": "weather"}})
    said = [reading.push(piece) for piece in ["", '{"ci', "", 'ty": "Rome"}']] + [reading.finish()]
    calls = [call.model_dump() for each in said for call in each.calls]

    assert "".join(each.text for each in said) == ""
    assert calls[0].pop("id").startswith("call-")
    assert calls == [
        {"index": 0, "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"ci'}},
        {"index": 0, "function": {"arguments": 'ty": "Rome"}'}},
    ]
    assert reading.num_calls == 1
