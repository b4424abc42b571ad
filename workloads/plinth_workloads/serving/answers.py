"""From the pieces of a request's choices to OpenAI's answers: one JSON body, or chunks of a stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from plinth_workloads.serving.engine import FinishReason, ScoredText, ScoredToken, TokenDelta
from plinth_workloads.serving.protocol import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatFinishReason,
    ChatLogprob,
    ChatLogprobs,
    ChatResponse,
    ChatText,
    ChatTopLogprob,
    CompletionChoice,
    CompletionLogprobs,
    CompletionResponse,
    Usage,
    new_id,
    now_seconds,
)
from plinth_workloads.serving.tool_calls import Said, ToolCallReader
from plinth_workloads.serving.tool_protocol import ToolUse


@dataclass(frozen=True, slots=True)
class WholeChoice:
    """All pieces of a choice put together."""

    text: str
    finish_reason: FinishReason | None
    scores: tuple[ScoredToken, ...]


class CompletionAnswer:
    """Writes the answer to POST /v1/completions."""

    def __init__(self, model: str, *, with_logprobs: bool = False) -> None:
        self._id, self._created, self._model = new_id("cmpl"), now_seconds(), model
        self._with_logprobs = with_logprobs
        self._offsets: dict[int, int] = {}

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> BaseModel:
        """All texts with the reasons for which they ended."""
        return self._response([self._choice(index, choice) for index, choice in enumerate(choices)], usage)

    def chunk(self, index: int, delta: TokenDelta) -> BaseModel:
        """One piece of choice `index`."""
        return self._response([self._choice(index, delta)], None)

    def _choice(self, index: int, part: WholeChoice | TokenDelta) -> CompletionChoice:
        logprobs = self._logprobs(index, part.scores) if self._with_logprobs else None
        return CompletionChoice(index=index, text=part.text, logprobs=logprobs, finish_reason=part.finish_reason)

    def _logprobs(self, index: int, scores: Sequence[ScoredToken]) -> CompletionLogprobs:
        offset, offsets = self._offsets.get(index, 0), []
        for score in scores:
            offsets.append(offset)
            offset += len(score.text)
        self._offsets[index] = offset
        return CompletionLogprobs(
            tokens=[score.text for score in scores],
            token_logprobs=[score.logprob for score in scores],
            # Of several parts of characters, which look the same, the likeliest stays.
            top_logprobs=[{other.text: other.logprob for other in reversed(score.top)} for score in scores],
            text_offset=offsets,
        )

    def usage_chunk(self, usage: Usage) -> BaseModel:
        """The last chunk, where usage was asked for."""
        return self._response([], usage)

    def _response(self, choices: list[CompletionChoice], usage: Usage | None) -> CompletionResponse:
        return CompletionResponse(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)


class ChatAnswer:
    """Writes the answer to POST /v1/chat/completions."""

    def __init__(self, model: str, *, with_logprobs: bool = False, tools: ToolUse | None = None) -> None:
        self._id, self._created, self._model = new_id("chatcmpl"), now_seconds(), model
        self._with_logprobs = with_logprobs
        self._begun: set[int] = set()
        self._tools = tools
        self._readers: dict[int, ToolCallReader] = {}
        self._untold: dict[int, list[ScoredToken]] = {}

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> BaseModel:
        """All messages with the reasons for which they ended."""
        return ChatResponse(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[self._choice(index, choice) for index, choice in enumerate(choices)],
            usage=usage,
        )

    def chunk(self, index: int, delta: TokenDelta) -> BaseModel | None:
        """One piece of choice `index`, the first of each tells the role; None while it may be a part of a call."""
        said, reason = self._read(index, delta)
        scores = self._untold.setdefault(index, [])
        scores += delta.scores
        if self._tools is not None and not (said.text or said.calls or reason):
            return None
        content = None if said.calls and not said.text else said.text
        role: Literal["assistant"] | None = None if index in self._begun else "assistant"
        text = ChatText(role=role, content=content, tool_calls=said.calls or None)
        self._begun.add(index)
        logprobs = self._logprobs(scores)
        del self._untold[index]
        return self._chunk([ChatChunkChoice(index=index, delta=text, logprobs=logprobs, finish_reason=reason)], None)

    def usage_chunk(self, usage: Usage) -> BaseModel:
        """The last chunk, where usage was asked for."""
        return self._chunk([], usage)

    def _choice(self, index: int, choice: WholeChoice) -> ChatChoice:
        said, reason = self._read(index, choice)
        logprobs = self._logprobs(choice.scores)
        return ChatChoice(index=index, message=_message(said), logprobs=logprobs, finish_reason=reason)

    def _read(self, index: int, part: WholeChoice | TokenDelta) -> tuple[Said, ChatFinishReason | None]:
        """A piece of choice `index` as text and calls, and why the choice ends, if so."""
        if self._tools is None:
            return Said(part.text), part.finish_reason
        reader = self._readers.setdefault(index, ToolCallReader(self._tools))
        said = reader.push(part.text)
        if part.finish_reason is None:
            return said, None
        rest = reader.finish()
        said = Said(said.text + rest.text, said.calls + rest.calls)
        return said, "tool_calls" if reader.num_calls and part.finish_reason == "stop" else part.finish_reason

    def _logprobs(self, scores: Sequence[ScoredToken]) -> ChatLogprobs | None:
        if not self._with_logprobs:
            return None
        return ChatLogprobs(
            content=[
                ChatLogprob(**_told(score), top_logprobs=[ChatTopLogprob(**_told(other)) for other in score.top])
                for score in scores
            ]
        )

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None) -> ChatChunk:
        return ChatChunk(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)


def _message(said: Said) -> ChatText:
    """A whole message; a call in it is not a piece, so its index goes."""
    calls = [call.model_copy(update={"index": None}) for call in said.calls]
    content = None if calls and not said.text else said.text
    return ChatText(role="assistant", content=content, tool_calls=calls or None)


def _told(score: ScoredText) -> dict[str, Any]:
    """OpenAI's fields of a token; what is a part of a character has no bytes of its own here."""
    whole = "\ufffd" not in score.text
    return {"token": score.text, "logprob": score.logprob, "bytes": list(score.text.encode()) if whole else None}


Answer = CompletionAnswer | ChatAnswer
