"""From the text that a model says to the functions that it calls.

Enters: a text in pieces. Leaves: what of it is text, at once, and the calls that are in it. It stands alone because
every family of models writes calls in a way of its own, and this is where a further one goes.

Read are Hermes' and Qwen's `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, anywhere and several times,
Llama 3's answer that is nothing but `{"name": ..., "parameters": {...}}`, and Mistral's that is nothing but a list of
such objects, behind `[TOOL_CALLS]` where that is text. What does not parse, or calls a function that the chat does not
have, stays text.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from plinth_workloads.serving.protocol import new_id
from plinth_workloads.serving.text_stream import num_overlapping
from plinth_workloads.serving.tool_protocol import CalledFunctionText, ToolCallText, ToolUse

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_LIST = "[TOOL_CALLS]"
_KEYS = ("name", "arguments", "parameters", "type", "id")
"""Those that the object of a call may have."""


@dataclass(slots=True)
class Said:
    """What became certain: text, and calls or what is added to them, in the shape of a stream."""

    text: str = ""
    calls: list[ToolCallText] = field(default_factory=list)


class ToolCallReader:
    """Reads one answer of a model that may call functions.

    Whitespace around calls is no text; so whitespace is held back until it is clear what follows.
    """

    def __init__(self, use: ToolUse) -> None:
        self._use = use
        self._held = ""
        self._has_text = False
        self.num_calls = 0

    def push(self, text: str) -> Said:
        """Take a piece of text; what became certain with it."""
        said = Said()
        if self._use.named is not None:
            self._add_arguments(said, text)
            return said
        self._held += text
        while self._held and self._take(said, ended=False):
            pass
        return said

    def finish(self) -> Said:
        """What was held back, once no more text can come."""
        said = Said()
        while self._held and self._take(said, ended=True):
            pass
        return said

    def _take(self, said: Said, *, ended: bool) -> bool:
        """Move the beginning of what is held to what is said; False where it is not clear yet what it is."""
        body = self._held.lstrip()
        if body.startswith(_OPEN):
            return self._take_tagged(said, body, ended=ended)
        first = not self._has_text and not self.num_calls
        if first and _may_be_calls(body):
            if ended and not self._add_calls(said, body.removeprefix(_LIST), in_list=True):
                self._say(said, len(self._held))
            return ended
        if not body and ended:
            self._say(said, 0 if self.num_calls else len(self._held))
            self._held = ""
            return False
        end = self._held.find(_OPEN)
        if end < 0:
            end = len(self._held) if ended else len(self._held) - num_overlapping(self._held, _OPEN)
        if not ended:
            end = len(self._held[:end].rstrip())
        self._say(said, end)
        return bool(end)

    def _take_tagged(self, said: Said, body: str, *, ended: bool) -> bool:
        close = body.find(_CLOSE)
        if close < 0 and not ended:
            return False
        inside, after = (
            (body[len(_OPEN) :], "") if close < 0 else (body[len(_OPEN) : close], body[close + len(_CLOSE) :])
        )
        if self._add_calls(said, inside):
            self._held = after
        else:
            self._say(said, len(self._held) - len(after))
        return True

    def _say(self, said: Said, end: int) -> None:
        said.text += self._held[:end]
        self._has_text = self._has_text or end > 0
        self._held = self._held[end:]

    def _add_calls(self, said: Said, text: str, *, in_list: bool = False) -> bool:
        calls = _calls_in(text, self._use, in_list=in_list)
        if not calls:
            return False
        self._held = ""
        for name, arguments in calls:
            if not (self._use.only_one and self.num_calls):
                said.calls.append(self._begun(name, arguments))
        return True

    def _add_arguments(self, said: Said, text: str) -> None:
        if not self.num_calls:
            assert self._use.named is not None
            said.calls.append(self._begun(self._use.named, text))
        elif text:
            said.calls.append(ToolCallText(index=0, function=CalledFunctionText(arguments=text)))

    def _begun(self, name: str, arguments: str) -> ToolCallText:
        self.num_calls += 1
        function = CalledFunctionText(name=name, arguments=arguments)
        return ToolCallText(index=self.num_calls - 1, id=new_id("call"), type="function", function=function)


def _may_be_calls(text: str) -> bool:
    """Whether a text may go on to be the object of a call, or a list of some."""
    rest = text.removeprefix(_LIST).lstrip()
    if rest.startswith("["):
        rest = rest[1:].lstrip()
    if not rest:
        return bool(text)
    if not rest.startswith("{"):
        return _LIST.startswith(text)
    key = rest[1:].lstrip()
    return any(f'"{known}"'.startswith(key[: len(known) + 2]) for known in _KEYS)


def _calls_in(text: str, use: ToolUse, *, in_list: bool) -> list[tuple[str, str]]:
    """The names and the arguments, as JSON, of the calls that a text is; none where any part of it is none."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = [_call_of(call, use) for call in (found if in_list and isinstance(found, list) else [found])]
    return [call for call in calls if call is not None] if None not in calls else []


def _call_of(call: Any, use: ToolUse) -> tuple[str, str] | None:
    if not isinstance(call, dict) or not call.keys() <= set(_KEYS):
        return None
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters"))
    if not isinstance(name, str) or name not in use.names or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)
