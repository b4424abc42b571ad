"""What an engine is: token ids and sampling parameters enter, pieces of text leave as they are made.

Apart from the engines, so that the app knows none of them and needs neither torch nor vLLM to be imported.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from plinth_api.run import ServingTask

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """What a text has to look like.

    Attributes:
        kind: The language of `text`; "choice" is a JSON list of strings, "grammar" is llguidance's kind of Lark.
        text: The schema, expression, choices or grammar.
        param: The request's parameter that it comes from.
    """

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    text: str
    param: str


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is chosen.

    Attributes:
        max_tokens: Most tokens that are made, the end-of-sequence token included.
        temperature: 0 takes the likeliest token.
        top_p: The token comes from the smallest set of likeliest tokens whose probabilities reach top_p.
        top_k: It comes from the top_k likeliest tokens; 0 for all.
        min_p: It is at least min_p times as likely as the likeliest token.
        repetition_penalty: Divides the logits of tokens of prompt and completion where they are positive, and
            multiplies them where they are negative; 1 changes nothing.
        presence_penalty: Taken from the logit of each token that the completion has.
        frequency_penalty: Taken from it once for each time.
        logit_bias: Added to the logits of tokens by their ids.
        num_logprobs: How many of the likeliest tokens are told with each token and its probability; None for neither.
        seed: The same seed gives the same tokens, whatever runs beside; None for another result every time.
        stop: Strings that end the text; they are not part of it.
        structure: Only tokens are made with which the text can still become so; it ends where it can only end.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_logprobs: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    structure: StructuredOutput | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt and what to do with it.

    Attributes:
        adapter: The name of one that is attached; None for the model as it is.
        client: Who asks: clients take turns.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParameters
    adapter: str | None = None
    client: str = ""


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A token as text, and the natural logarithm of the probability that the model gave it.

    Attributes:
        text: The token by itself; a replacement character where it is a part of one.
    """

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoredToken(ScoredText):
    """A token that was made, and the likeliest ones in its place."""

    top: tuple[ScoredText, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """What one or more new tokens add to the text.

    Attributes:
        text: Whole characters; may be empty in the last delta of a request, never in another.
        num_prompt_tokens: Tokens of the prompt.
        num_completion_tokens: Tokens made so far.
        finish_reason: Set in the last delta only: "stop" for a stop string or the end of the sequence.
        scores: The new tokens that are text, where the request asks for their probabilities.
    """

    text: str
    num_prompt_tokens: int
    num_completion_tokens: int
    finish_reason: FinishReason | None = None
    scores: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that an assistant asked for, with its arguments."""

    call_id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a chat.

    Attributes:
        tool_calls: What the assistant asked for in this turn.
        tool_call_id: Of a tool's turn: the call that it answers.
        tool_name: Of a tool's turn: the function that was called.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    tool_name: str | None = None


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How full an engine's cache of keys and values is.

    Attributes:
        used: Positions that rows in work hold.
        total: Positions that there may be.
        prompt_tokens: Of all prompts that were read so far.
        reused_tokens: Those of them that were there already.
    """

    used: int = 0
    total: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0

    def __add__(self, other: "CacheUse") -> "CacheUse":
        return CacheUse(
            self.used + other.used,
            self.total + other.total,
            self.prompt_tokens + other.prompt_tokens,
            self.reused_tokens + other.reused_tokens,
        )


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is busy with; a sum is of two engines beside each other."""

    running: int
    waiting: int
    cache: CacheUse = CacheUse()

    def __add__(self, other: "EngineStats") -> "EngineStats":
        return EngineStats(self.running + other.running, self.waiting + other.waiting, self.cache + other.cache)


class InvalidPrompt(ValueError):
    """A prompt that this model cannot take; the message says why."""


class NoChatTemplate(InvalidPrompt):
    """The model has no chat template; it can go on with a text."""


class ContextLengthExceeded(InvalidPrompt):
    """Prompt and completion together are longer than the model's context."""


class InvalidParameter(ValueError):
    """A value that this model cannot take.

    Attributes:
        param: The name of the parameter.
    """

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class UnknownAdapter(Exception):
    """No adapter of that name is attached."""


class EngineOverloaded(Exception):
    """As many requests wait as may.

    Attributes:
        retry_after_seconds: When to try again.
    """

    def __init__(self, message: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class GenerationFailed(Exception):
    """The engine could not go on with this request."""


class ModelEngine(Protocol):
    """A model that answers many requests at once. Its async methods belong to one event loop."""

    @property
    def task(self) -> ServingTask:
        """What it does: `Engine` generates, an `Encoder` embeds or classifies."""

    @property
    def context_length(self) -> int:
        """Most tokens of a text, or of a prompt and its completion together."""

    async def start(self) -> None:
        """Make the engine ready for requests."""

    async def stop(self) -> None:
        """Give everything back; requests that still run fail."""

    async def check_health(self) -> None:
        """Return once the model has really answered.

        Raises:
            GenerationFailed: It did not; the message says why.
        """

    async def warm_up(self) -> None:
        """Return once the model has answered in each way that costs something the first time.

        Raises:
            GenerationFailed: It did not.
        """

    def stats(self) -> EngineStats:
        """What the engine is busy with now."""


class Engine(ModelEngine, Protocol):
    """A model that generates text."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt; safe to call from any thread.

        Raises:
            InvalidPrompt: The text has no tokens and the model no token to start with.
        """

    def encode_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Token ids of a chat up to where the assistant speaks; safe to call from any thread.

        Args:
            messages: The turns.
            tools: Functions that the assistant may call, each in OpenAI's words.

        Raises:
            NoChatTemplate: The model has none.
            InvalidPrompt: The template refuses these messages.
            InvalidParameter: There are tools, and the template does not know them.
        """

    def place_for(self, client: str) -> AbstractContextManager[None]:
        """A place for one request of a client, whatever it generates, until the end of the block.

        Raises:
            EngineOverloaded: This client has as many as he may, or all are taken.
        """

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """The completion, piece by piece, made whether or not they are read. Closing the generator cancels the request.

        Raises:
            InvalidPrompt: The prompt has ids that the model does not know.
            InvalidParameter: The bias has; or no text can be made as the structure says.
            ContextLengthExceeded: Prompt and max_tokens do not fit.
            UnknownAdapter: No adapter has the name that is asked for.
            GenerationFailed: The model failed on this request; the engine goes on with the others.
        """

    async def attach_adapter(self, name: str, folder: Path) -> None:
        """Answer requests for `name` with the adapter of a PEFT folder, in place of one that had the name before.

        Those that are being answered go on, with the adapter that they began with.

        Raises:
            UserError: ModelLoadFailed where it is damaged, for another model, or of a kind that is not served so.
        """

    async def detach_adapter(self, name: str) -> None:
        """Answer no new requests for `name`."""
