"""OpenAI's completion requests and responses, as far as they are served (https://platform.openai.com/docs/api-reference).

Enters: JSON bodies. Leaves: typed requests, or a validation error that names the parameter. A parameter that is not
served is accepted at a value that changes nothing and refused at any other, so that no wish is silently ignored.
"""

import time
import uuid
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from plinth_workloads.serving.engine import FinishReason, StructuredOutput
from plinth_workloads.serving.structure_protocol import ResponseFormatBody, StructuredOutputsBody, structure_of
from plinth_workloads.serving.tool_protocol import (
    MAX_TOOLS,
    Sparse,
    ToolBody,
    ToolCallBody,
    ToolCallText,
    ToolChoiceField,
    ToolUse,
    demanded_structure,
    tool_use_of,
)

MAX_CHOICES = 16
MAX_PROMPTS = 128
MAX_STOP_STRINGS = 4
MAX_BIASED_TOKENS = 1024
MAX_TOP_LOGPROBS = 20

ChatFinishReason = FinishReason | Literal["tool_calls"]

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
}
"""Values at which a parameter that is not served changes nothing; None always does."""

_IGNORED = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "user"})
"""Parameters that are for the provider's records, not for the answer."""


def _is_neutral(name: str, value: Any) -> bool:
    # Python's False == 0 would not see that one of them asks for something.
    return any(value == it and isinstance(value, bool) == isinstance(it, bool) for it in _NEUTRAL.get(name, ()))


def parse_texts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """A string or token ids for each text of the four forms that OpenAI allows."""
    if isinstance(value, str) or _is_token_ids(value):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(item, str) or _is_token_ids(item) for item in value):
        return tuple(item if isinstance(item, str) else tuple(item) for item in value)
    raise PydanticCustomError("prompt", "must be a string, a list of strings, or one or several lists of token ids")


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _parse_stop(value: Any) -> tuple[str, ...]:
    stop = [] if value is None else [value] if isinstance(value, str) else value
    if isinstance(stop, list) and len(stop) <= MAX_STOP_STRINGS and all(isinstance(item, str) for item in stop):
        return tuple(item for item in stop if item)
    raise PydanticCustomError("stop", f"must be a string or a list of up to {MAX_STOP_STRINGS} strings")


def _parse_bias(value: Any) -> tuple[tuple[int, float], ...]:
    """Token ids, which JSON writes as strings, each with what is added to its logit."""
    if not isinstance(value, dict) or len(value) > MAX_BIASED_TOKENS:
        raise PydanticCustomError("logit_bias", f"must map at most {MAX_BIASED_TOKENS} token ids to numbers")
    found: dict[int, float] = {}
    for token, bias in value.items():
        named = str(token).isdecimal()
        if not named or isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise PydanticCustomError(
                "logit_bias",
                "has {entry}: it must map token ids to numbers from -100 to 100",
                {"entry": f"{str(token)[:20]!r}: {str(bias)[:20]}"},
            )
        found[int(token)] = float(bias)
    return tuple(found.items())


def _parse_top_k(value: Any) -> Any:
    """All tokens: clients of vLLM write -1, those of transformers 0."""
    return 0 if value == -1 else value


def _parse_num_logprobs(value: Any) -> Any:
    return None if value is False else value


def _parse_content(value: Any) -> Any:
    """A message's text; of the parts that OpenAI allows, text only."""
    if not isinstance(value, list):
        return "" if value is None else value
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise PydanticCustomError(
                "content", "has a part of type {kind}: this model reads text", {"kind": str(kind)}
            )
    return "".join(part["text"] for part in value)


def _check_characters(value: Any) -> None:
    """Raise UnicodeEncodeError where a string of a JSON value, or a name, has half of a surrogate pair."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for name, item in value.items():
            name.encode()
            _check_characters(item)
    elif isinstance(value, list):
        for item in value:
            # A prompt may be a hundred thousand token ids, while the event loop waits.
            if type(item) is not int:
                _check_characters(item)


class StreamOptions(BaseModel):
    """What a stream carries beside the text."""

    include_usage: bool = False


class RequestBody(BaseModel):
    """What all requests have in common."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    model: str

    @model_validator(mode="before")
    @classmethod
    def _refuse_half_characters(cls, body: Any) -> Any:
        """JSON can write half of a surrogate pair, which no tokenizer takes and no answer can repeat."""
        if not isinstance(body, dict):
            return body
        try:
            _check_characters(body)
        except UnicodeEncodeError:
            text = "has half of a Unicode character, a lone surrogate; leave it out"
            raise PydanticCustomError("half_character", text) from None
        except RecursionError:
            raise PydanticCustomError("too_deep", "is nested too deeply; make it flatter") from None
        return body

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        """OpenAI's clients send null for what is not set."""
        return {key: value for key, value in body.items() if value is not None} if isinstance(body, dict) else body

    @model_validator(mode="after")
    def _refuse_what_is_not_served(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name not in _IGNORED and not _is_neutral(name, value):
                raise PydanticCustomError(
                    "unsupported_parameter", "{name} is not supported by this server; leave it out", {"name": name}
                )
        return self


class GenerationBody(RequestBody):
    """What completions and chat completions have in common."""

    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_parse_stop)] = ()
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: Annotated[int, BeforeValidator(_parse_top_k), Field(ge=0)] = 0
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: Annotated[tuple[tuple[int, float], ...], BeforeValidator(_parse_bias)] = ()
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    response_format: ResponseFormatBody | None = None
    structured_outputs: StructuredOutputsBody | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def structure(self) -> StructuredOutput | None:
        """What the text has to look like; raises InvalidParameter where the request contradicts itself."""
        return structure_of(self.response_format, self.structured_outputs)


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Annotated[tuple[str | tuple[int, ...], ...], BeforeValidator(parse_texts), Field(max_length=MAX_PROMPTS)]
    logprobs: Annotated[
        Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None, BeforeValidator(_parse_num_logprobs)
    ] = None

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told with each; None where no probability is."""
        return self.logprobs


class MessageBody(BaseModel):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_parse_content)] = ""
    name: str | None = None
    tool_calls: tuple[ToolCallBody, ...] | None = None
    tool_call_id: str | None = None


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[tuple[MessageBody, ...], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Annotated[tuple[ToolBody, ...], Field(max_length=MAX_TOOLS)] = ()
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _require_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs needs logprobs: true")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told with each; None where no probability is."""
        return self.top_logprobs if self.logprobs else None

    @property
    def tool_use(self) -> ToolUse | None:
        """What may be called; raises InvalidParameter where the request contradicts itself."""
        return tool_use_of(self.tools, self.tool_choice, only_one=not self.parallel_tool_calls)

    @property
    def structure(self) -> StructuredOutput | None:
        """See GenerationBody; of the calls where one is demanded."""
        return demanded_structure(self.tool_use, super().structure)


class Usage(BaseModel):
    """Tokens that a request used; a prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(BaseModel):
    """The tokens of a text, each with its logarithmic probability, the likeliest in its place, and where it begins."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text, or in a stream one piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None


class CompletionResponse(BaseModel):
    """The answer to a completion, or one chunk of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ChatText(Sparse):
    """A message, or in a stream what is added to it: OpenAI's client joins the roles of all deltas."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallText] | None = None


class ChatTopLogprob(BaseModel):
    """A token and its logarithmic probability; `bytes` are missing where it is a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(ChatTopLogprob):
    """A token of the answer, and the likeliest ones in its place."""

    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(BaseModel):
    """The tokens of an answer."""

    content: list[ChatLogprob]
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatText
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None


class ChatChunkChoice(BaseModel):
    """One piece of an answer."""

    index: int
    delta: ChatText
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None


class ChatResponse(BaseModel):
    """The answer to a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class ChatChunk(BaseModel):
    """One chunk of the stream that answers a chat."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class ErrorDetail(BaseModel):
    """What went wrong, in the words and codes of OpenAI's API."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def new_id(prefix: str) -> str:
    """An id for a response."""
    return f"{prefix}-{uuid.uuid4().hex}"


def now_seconds() -> int:
    """Unix time, as OpenAI writes it."""
    return int(time.time())
