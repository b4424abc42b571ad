"""A chat's turns: from OpenAI's messages to the engine's, and from those to what chat templates read.

Enters: the messages of a request. Leaves: ChatMessages, and for each the dictionary that transformers documents for
templates (https://huggingface.co/docs/transformers/chat_extras). It stands alone because calls of functions have other
forms in all three.
"""

from collections.abc import Sequence
from typing import Any

from plinth_workloads.serving.engine import ChatMessage
from plinth_workloads.serving.protocol import MessageBody

Turn = dict[str, Any]


def chat_messages(bodies: Sequence[MessageBody]) -> list[ChatMessage]:
    """A request's messages as engines take them; a tool's turn learns the function's name from the call it answers."""
    names: dict[str, str] = {}
    messages = []
    for body in bodies:
        calls = tuple(call.call for call in body.tool_calls or ())
        names.update((call.call_id, call.name) for call in calls)
        # "developer" is OpenAI's newer name for "system", which no chat template knows.
        role = "system" if body.role == "developer" else body.role
        name = body.name or names.get(body.tool_call_id or "") if role == "tool" else None
        messages.append(ChatMessage(role, body.content, calls, body.tool_call_id, name))
    return messages


def template_turn(message: ChatMessage) -> Turn:
    """A turn as chat templates read it: what it does not have is left out, as many ask whether it is there."""
    turn: Turn = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_name is not None:
        turn["name"] = message.tool_name
    return turn
