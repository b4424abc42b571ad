import pytest

from plinth_workloads.serving.chat_turns import chat_messages, template_turn
from plinth_workloads.serving.engine import ChatMessage, InvalidParameter, ToolCall
from plinth_workloads.serving.prompt_encoder import PromptEncoder
from plinth_workloads.serving.protocol import MessageBody
from unit.plinth_workloads.serving.tiny_model import make_tokenizer
from unit.plinth_workloads.serving.tools import TOOL_TEMPLATE, TOOLS

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
KNOWS_NONE = "{% for message in messages %}{{ message.role }}:{{ message.content }};{% endfor %}"


def turns(*messages):
    return chat_messages([MessageBody.model_validate(message) for message in messages])


def rendered(messages, tools=(), template=TOOL_TEMPLATE):
    tokenizer = make_tokenizer(chat_template=template)
    return tokenizer.decode(PromptEncoder(tokenizer).encode_chat(messages, tools))


def test_a_tool_s_turn_learns_its_name_from_the_call_that_it_answers():
    messages = turns(
        {"role": "developer", "content": "d", "name": "ignored"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "c2", "content": "?"},
        {"role": "tool", "tool_call_id": "c1", "name": "own", "content": "!"},
    )

    assert messages == [
        ChatMessage("system", "d"),
        ChatMessage("assistant", "", (ToolCall("c1", "weather", {"city": "Rome"}),)),
        ChatMessage("tool", "sunny", (), "c1", "weather"),
        ChatMessage("tool", "?", (), "c2", None),
        ChatMessage("tool", "!", (), "c1", "own"),
    ]


def test_templates_read_what_transformers_documents_and_nothing_that_is_not_there():
    call = ToolCall("c1", "weather", {"city": "Rome"})
    function = {"name": "weather", "arguments": {"city": "Rome"}}

    assert template_turn(ChatMessage("user", "x")) == {"role": "user", "content": "x"}
    assert template_turn(ChatMessage("assistant", "", (call,))) == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }
    assert template_turn(ChatMessage("tool", "sunny", (), "c1", "weather")) == {
        "role": "tool",
        "content": "sunny",
        "tool_call_id": "c1",
        "name": "weather",
    }


def test_tools_and_their_calls_are_written_by_the_template():
    messages = turns(
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    )

    assert rendered(messages, TOOLS) == (
        "[weather][time]user: ?;assistant: <weather [('city', 'Rome')]>;tool weather: sunny;assistant:"
    )


@pytest.mark.parametrize(
    ("message", "tools", "param"),
    [
        pytest.param({"role": "user", "content": "?"}, TOOLS, "tools", id="tools"),
        pytest.param({"role": "assistant", "tool_calls": [CALL]}, (), "messages", id="calls"),
    ],
)
def test_a_template_that_passes_over_tools_is_no_template_for_them(message, tools, param):
    with pytest.raises(InvalidParameter, match="the model's chat template knows no tools") as refused:
        rendered(turns(message), tools, KNOWS_NONE)

    assert refused.value.param == param
    assert rendered(turns({"role": "user", "content": "?"}), template=KNOWS_NONE) == "user:?;"
