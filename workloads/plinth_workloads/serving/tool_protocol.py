"""OpenAI's words for functions that a chat may call (https://platform.openai.com/docs/guides/function-calling).

Enters: `tools`, `tool_choice` and the calls of earlier turns, as JSON. Leaves: what the chat template is told, what the
text has to look like where a call is demanded, and the shapes in which calls are answered. It stands alone because
completions have none of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic_core import PydanticCustomError

from plinth_workloads.serving.engine import InvalidParameter, StructuredOutput, ToolCall
from plinth_workloads.serving.structure_protocol import JSON_OPTIONS

MAX_TOOLS = 128
"""OpenAI's."""

_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether a function is called, and which: `name` where it is one that the client names."""

    mode: Literal["none", "auto", "required"]
    name: str | None = None


def _parse_choice(value: Any) -> ToolChoice:
    match value:
        case "none" | "auto" | "required":
            return ToolChoice(value)
        case {"type": "function", "function": {"name": str(name)}}:
            return ToolChoice("required", name)
    wanted = '"none", "auto", "required" or {"type": "function", "function": {"name": ...}}'
    raise PydanticCustomError("tool_choice", f"must be {wanted}")


def _parse_arguments(value: Any) -> Any:
    """The arguments of an earlier call, which the API carries as a string of JSON and templates take as an object."""
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise PydanticCustomError("arguments", "must be a JSON object in a string")
    return parsed


ToolChoiceField = Annotated[ToolChoice, BeforeValidator(_parse_choice)]


class FunctionBody(BaseModel):
    """A function that may be called; `parameters` is the JSON schema of its arguments."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(BaseModel):
    """One of a chat's tools."""

    type: Literal["function"]
    function: FunctionBody


class CalledFunctionBody(BaseModel):
    """What was called in an earlier turn."""

    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(_parse_arguments)]


class ToolCallBody(BaseModel):
    """A call of an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunctionBody

    @property
    def call(self) -> ToolCall:
        """The call as engines take it."""
        return ToolCall(self.id, self.function.name, self.function.arguments)


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a chat may call.

    Attributes:
        tools: For the chat template, in OpenAI's words.
        names: Of the functions.
        named: The function that has to be called, where the client names it: the text is its arguments then.
        structure: What the text has to look like where a call is demanded.
        only_one: Whether one call is the most.
    """

    tools: tuple[Mapping[str, Any], ...]
    names: frozenset[str]
    named: str | None
    structure: StructuredOutput | None
    only_one: bool


def tool_use_of(tools: Sequence[ToolBody], choice: ToolChoice | None, *, only_one: bool) -> ToolUse | None:
    """What a chat may call; None where nothing is.

    Raises:
        InvalidParameter: A call is demanded and there is no such function; two functions have one name.
    """
    functions = {tool.function.name: tool.function for tool in tools}
    if len(functions) < len(tools):
        raise InvalidParameter("tools", "tools: two functions have the same name; give each its own")
    choice = choice or ToolChoice("auto")
    if choice.mode == "required" and not functions:
        raise InvalidParameter("tool_choice", "tool_choice demands a call, but tools has no function")
    if choice.name is not None and choice.name not in functions:
        raise InvalidParameter("tool_choice", f"tool_choice: tools has no function {choice.name!r}")
    if choice.mode == "none" or not functions:
        return None
    structure = None
    if choice.name is not None:
        schema = functions[choice.name].parameters or _NO_ARGUMENTS
        structure = StructuredOutput("json_schema", json.dumps(schema), "tools")
    elif choice.mode == "required":
        structure = StructuredOutput("grammar", _any_call_of(list(functions.values())), "tools")
    told = tuple(tool.model_dump(exclude_unset=True) for tool in tools)
    return ToolUse(told, frozenset(functions), choice.name, structure, only_one)


def demanded_structure(use: ToolUse | None, structure: StructuredOutput | None) -> StructuredOutput | None:
    """What a chat's text has to look like, by its calls and by `structure`, what else is asked of it.

    Raises:
        InvalidParameter: Both, as a text of the one form could never be a call.
    """
    if use is None or structure is None:
        return structure if use is None else use.structure
    fix = 'leave one out, or set tool_choice to "none"'
    raise InvalidParameter(structure.param, f"{structure.param} and tools cannot be combined: {fix}")


def _any_call_of(functions: Sequence[FunctionBody]) -> str:
    """A call of any of the functions, as Hermes and Qwen write it between their tags.

    A schema for each, and not one for all: within another one, its references would mean something else.
    """
    rules = [f"start: {' | '.join(f'call{number}' for number in range(len(functions)))}"]
    for number, function in enumerate(functions):
        opening = json.dumps(f'{{"name": "{function.name}", "arguments": ')
        rules.append(f'call{number}: {opening} arguments{number} "}}"')
        schema = {**(function.parameters or _NO_ARGUMENTS), "x-guidance": JSON_OPTIONS}
        rules.append(f"arguments{number}: %json {json.dumps(schema)}")
    return "\n".join(rules)


class Sparse(BaseModel):
    """Leaves out what is None."""

    @model_serializer(mode="wrap")
    def _leave_out_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class CalledFunctionText(Sparse):
    """What is called, or in a stream what is added to its arguments: JSON in a string."""

    name: str | None = None
    arguments: str


class ToolCallText(Sparse):
    """A call, or in a stream what is added to the call `index`."""

    index: int | None = None
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionText
