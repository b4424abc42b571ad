"""The OpenAI-compatible HTTP application over a served model; runs under any ASGI server, knows neither Ray nor torch.

Enters: HTTP. Leaves: /v1/models, /v1/completions and /v1/chat/completions for clients, /health for probes, /-/state for
the operator.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from plinth_api.service_state import STATE_PATH, ServiceState
from plinth_workloads.serving.answers import Answer, ChatAnswer, CompletionAnswer, WholeChoice
from plinth_workloads.serving.api_errors import api_error_from, unknown_model
from plinth_workloads.serving.api_keys import ApiKeys, RequireKey
from plinth_workloads.serving.choices import Body, UsageCount, generate_choices
from plinth_workloads.serving.engine import (
    EngineOverloaded,
    EngineStats,
    GenerationFailed,
    InvalidParameter,
    InvalidPrompt,
    TokenDelta,
)
from plinth_workloads.serving.protocol import (
    ChatBody,
    CompletionBody,
    ErrorBody,
    ModelCard,
    ModelList,
    now_seconds,
)
from plinth_workloads.serving.served_model import ModelNotReady, ServedModel

logger = logging.getLogger(__name__)

HEALTH_PATH = "/health"
_CLIENT_CLOSED_REQUEST = 499
"""What nginx logs for a client that did not wait; nobody reads the answer."""

_ANSWERED_ERRORS = (
    EngineOverloaded,
    GenerationFailed,
    HTTPException,
    InvalidParameter,
    InvalidPrompt,
    ModelNotReady,
    RequestValidationError,
    Exception,
)

_Result = TypeVar("_Result")
Deltas = AsyncGenerator[tuple[int, TokenDelta], None]


@dataclass
class _Counters:
    requests: int = 0
    errors: int = 0
    tokens: int = 0


class _ClientGone(Exception):
    """Nobody waits for the answer."""


class _EventStream(StreamingResponse):
    """Server-sent events; what they are made from is closed however the response ends."""

    def __init__(self, events: AsyncIterator[str], deltas: Deltas) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._deltas = deltas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._deltas.aclose()


def build_asgi(served: ServedModel, *, name: str, keys: ApiKeys | None = None) -> FastAPI:
    """The application that answers for `served` under the model name `name`.

    Args:
        served: The version in use.
        name: By which clients ask for it.
        keys: What opens everything but health and state; None for everybody.
    """
    app = FastAPI(title=name, openapi_url=None)
    if keys is not None:
        app.add_middleware(RequireKey, keys=keys, open_paths=frozenset({HEALTH_PATH, STATE_PATH}))
    counters = _Counters()
    created = now_seconds()

    def model_card() -> ModelCard:
        context_length = served.engine.context_length if served.engine else None
        return ModelCard(id=name, created=created, root=served.uri or served.target_uri, max_model_len=context_length)

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[model_card()])

    @app.get("/v1/models/{model}")
    async def get_model(model: str) -> ModelCard:
        if model != name:
            raise unknown_model(model, name)
        return model_card()

    @app.post("/v1/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        answer = CompletionAnswer(name, with_logprobs=body.num_logprobs is not None)
        return await _answer(served, name, counters, body, answer, request)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        answer = ChatAnswer(name, with_logprobs=body.num_logprobs is not None)
        return await _answer(served, name, counters, body, answer, request)

    @app.get(HEALTH_PATH)
    async def health() -> JSONResponse:
        return await _health(served)

    @app.get(STATE_PATH)
    async def state() -> JSONResponse:
        return JSONResponse(_state(served, name, counters, keys).to_wire())

    @app.exception_handler(_ClientGone)
    async def forget(request: Request, error: Exception) -> Response:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)

    for kind in _ANSWERED_ERRORS:
        app.add_exception_handler(kind, _answer_error)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    return api_error_from(error).to_response()


async def _answer(
    served: ServedModel, name: str, counters: _Counters, body: Body, answer: Answer, request: Request
) -> Response:
    if body.model != name:
        raise unknown_model(body.model, name)
    counters.requests += 1
    deltas = _counted(generate_choices(served, body), counters)
    if not body.stream:
        return await _unless_gone(request, _whole_answer(deltas, body, answer))
    # The first piece is awaited before the status is sent, so that a refusal is a status and not an event.
    first = await _unless_gone(request, anext(deltas))
    return _EventStream(_events(first, deltas, body, answer), deltas)


async def _counted(deltas: Deltas, counters: _Counters) -> Deltas:
    tokens_before: dict[int, int] = {}
    try:
        async with aclosing(deltas):
            async for index, delta in deltas:
                counters.tokens += delta.num_completion_tokens - tokens_before.get(index, 0)
                tokens_before[index] = delta.num_completion_tokens
                yield index, delta
    except Exception as error:
        counters.errors += api_error_from(error).status >= 500
        raise


async def _whole_answer(deltas: Deltas, body: Body, answer: Answer) -> Response:
    made: dict[int, list[TokenDelta]] = {}
    count = UsageCount(body.n)
    async with aclosing(deltas):
        async for index, delta in deltas:
            made.setdefault(index, []).append(delta)
            count.add(index, delta)
    choices = [_whole(parts) for _, parts in sorted(made.items())]
    return JSONResponse(answer.whole(choices, count.usage()).model_dump())


def _whole(parts: Sequence[TokenDelta]) -> WholeChoice:
    text = "".join(part.text for part in parts)
    return WholeChoice(text, parts[-1].finish_reason, tuple(score for part in parts for score in part.scores))


async def _events(first: tuple[int, TokenDelta], deltas: Deltas, body: Body, answer: Answer) -> AsyncIterator[str]:
    hidden = None if body.includes_usage else {"usage"}
    count = UsageCount(body.n)
    try:
        async for index, delta in _chained(first, deltas):
            count.add(index, delta)
            yield _event(answer.chunk(index, delta).model_dump_json(exclude=hidden))
        if body.includes_usage:
            yield _event(answer.usage_chunk(count.usage()).model_dump_json())
    except Exception as error:
        yield _event(ErrorBody(error=api_error_from(error).detail).model_dump_json())
    yield _event("[DONE]")


async def _chained(first: tuple[int, TokenDelta], deltas: Deltas) -> AsyncIterator[tuple[int, TokenDelta]]:
    yield first
    async for item in deltas:
        yield item


def _event(data: str) -> str:
    return f"data: {data}\n\n"


async def _unless_gone(request: Request, work: Awaitable[_Result]) -> _Result:
    """The result of `work`, which is cancelled when the client closes the connection."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_wait_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _health(served: ServedModel) -> JSONResponse:
    try:
        await served.check_health()
    except ModelNotReady as error:
        return JSONResponse({"status": "failed" if error.failed else "loading", "message": str(error)}, 503)
    except GenerationFailed as error:
        return JSONResponse({"status": "unhealthy", "message": str(error)}, 503)
    return JSONResponse({"status": "ok", "message": f"{served.uri} answers"})


def _state(served: ServedModel, name: str, counters: _Counters, keys: ApiKeys | None) -> ServiceState:
    engine = served.engine
    stats = engine.stats() if engine else EngineStats(running=0, waiting=0)
    return ServiceState(
        name=name,
        model_uri=served.uri,
        target_uri=served.target_uri,
        loaded=engine is not None,
        load_error=served.load_error,
        prompt_hash=served.prompt_hash,
        api_keys=None if keys is None else len(keys),
        context_length=engine.context_length if engine else None,
        running=stats.running,
        waiting=stats.waiting,
        requests=counters.requests,
        errors=counters.errors,
        tokens=counters.tokens,
    )
