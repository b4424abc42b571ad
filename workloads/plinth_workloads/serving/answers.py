"""From the pieces of a request's choices to OpenAI's answers: one JSON body, or chunks of a stream."""

from collections.abc import Sequence

from pydantic import BaseModel

from plinth_workloads.serving.engine import FinishReason, TokenDelta
from plinth_workloads.serving.protocol import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatResponse,
    ChatText,
    CompletionChoice,
    CompletionResponse,
    Usage,
    new_id,
    now_seconds,
)


class CompletionAnswer:
    """Writes the answer to POST /v1/completions."""

    def __init__(self, model: str) -> None:
        self._id, self._created, self._model = new_id("cmpl"), now_seconds(), model

    def whole(self, choices: Sequence[tuple[str, FinishReason | None]], usage: Usage) -> BaseModel:
        """All texts with the reasons for which they ended."""
        return self._response(
            [CompletionChoice(index=i, text=text, finish_reason=reason) for i, (text, reason) in enumerate(choices)],
            usage,
        )

    def chunk(self, index: int, delta: TokenDelta) -> BaseModel:
        """One piece of choice `index`."""
        return self._response([CompletionChoice(index=index, text=delta.text, finish_reason=delta.finish_reason)], None)

    def usage_chunk(self, usage: Usage) -> BaseModel:
        """The last chunk, where usage was asked for."""
        return self._response([], usage)

    def _response(self, choices: list[CompletionChoice], usage: Usage | None) -> CompletionResponse:
        return CompletionResponse(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)


class ChatAnswer:
    """Writes the answer to POST /v1/chat/completions."""

    def __init__(self, model: str) -> None:
        self._id, self._created, self._model = new_id("chatcmpl"), now_seconds(), model
        self._begun: set[int] = set()

    def whole(self, choices: Sequence[tuple[str, FinishReason | None]], usage: Usage) -> BaseModel:
        """All messages with the reasons for which they ended."""
        return ChatResponse(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[
                ChatChoice(index=i, message=ChatText(role="assistant", content=text), finish_reason=reason)
                for i, (text, reason) in enumerate(choices)
            ],
            usage=usage,
        )

    def chunk(self, index: int, delta: TokenDelta) -> BaseModel:
        """One piece of choice `index`; the first of each tells the role."""
        text = ChatText(role=None if index in self._begun else "assistant", content=delta.text)
        self._begun.add(index)
        return self._chunk([ChatChunkChoice(index=index, delta=text, finish_reason=delta.finish_reason)], None)

    def usage_chunk(self, usage: Usage) -> BaseModel:
        """The last chunk, where usage was asked for."""
        return self._chunk([], usage)

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None) -> ChatChunk:
        return ChatChunk(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)


Answer = CompletionAnswer | ChatAnswer
