"""Every option of completions and chats, with a value that is taken and one that is refused, for OpenAI's client."""

import inspect
from dataclasses import dataclass
from typing import Any

import openai

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}},
    "required": ["kind"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
CHAT = [{"role": "user", "content": "Write a docstring for this Python code.\n\ndef close(self):"}]


@dataclass(frozen=True)
class Option:
    """A parameter, a value that it may have and one that it may not; None where nothing is refused.

    Attributes:
        needs: What else has to be set.
    """

    name: str
    value: Any
    wrong: Any = None
    needs: tuple[tuple[str, Any], ...] = ()

    @property
    def parameters(self) -> dict[str, Any]:
        """Of a request that has it."""
        return {**dict(self.needs), self.name: self.value}


OF_BOTH = (
    Option("temperature", 0.5, 3),
    Option("min_p", 0.1, 2),
    Option("top_k", 5, -2),
    Option("top_p", 0.9, 0),
    Option("repetition_penalty", 1.2, 0),
    Option("presence_penalty", 1.5, 3),
    Option("frequency_penalty", -1.5, -3),
    Option("logit_bias", {"5": -100}, {"5": 101}),
    Option("stop", ["\n\n", "def"], ["a", "b", "c", "d", "e"]),
    Option("seed", 17, "seventeen"),
    Option("n", 2, 17),
    Option("max_tokens", 4, 0),
    Option("response_format", {"type": "json_object"}, {"type": "xml"}),
    Option("structured_outputs", {"choice": ["yes", "no"]}, {"regex": "("}),
    Option("stream_options", {"include_usage": True}, needs=(("stream", True),)),
    Option("user", "ann"),
    Option("safety_identifier", "ann"),
)
OF_COMPLETIONS = (*OF_BOTH, Option("logprobs", 3, 21))
OF_CHATS = (
    *OF_BOTH,
    Option("logprobs", True, "yes please"),
    Option("top_logprobs", 3, 21, needs=(("logprobs", True),)),
    Option("max_completion_tokens", 4, 0),
    Option("tools", [TOOL], [{"type": "function"}], needs=(("tool_choice", "none"),)),
    Option("tool_choice", "none", "sometimes", needs=(("tools", [TOOL]),)),
    Option("parallel_tool_calls", False, "no way", needs=(("tools", [TOOL]), ("tool_choice", "none"))),
)


def complete(client: openai.OpenAI, model: str, prompt: Any, **parameters: Any) -> Any:
    """A completion, without chance and short unless it is said otherwise."""
    return _asked(client.completions.create, {"model": model, "prompt": prompt}, parameters)


def chat(client: openai.OpenAI, model: str, messages: Any = CHAT, **parameters: Any) -> Any:
    """The same for a chat."""
    return _asked(client.chat.completions.create, {"model": model, "messages": messages}, parameters)


def _asked(create: Any, what: dict[str, Any], parameters: dict[str, Any]) -> Any:
    """What the client has no word for goes into the body as it is."""
    asked = {"temperature": 0, "max_tokens": 12, **parameters}
    known = inspect.signature(create).parameters
    extra = {name: asked.pop(name) for name in list(asked) if name not in known}
    return create(**what, **asked, extra_body=extra)
