"""The OpenAI-compatible HTTP application over a served model; runs under any ASGI server, knows neither Ray nor torch.

Enters: HTTP. Leaves: /v1/models, /v1/completions, /v1/chat/completions and what an encoder answers for clients, and
what probes.py and chat_page.py answer beside them.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from plinth_workloads.serving.answers import Answer, ChatAnswer, CompletionAnswer, WholeChoice
from plinth_workloads.serving.api_errors import ApiError, logged_api_error_from
from plinth_workloads.serving.api_keys import ApiKeys, RequireKey
from plinth_workloads.serving.body_limit import LimitBody
from plinth_workloads.serving.chat_page import PAGE_PATHS, add_chat_page
from plinth_workloads.serving.choices import Body, Deltas, UsageCount, generate_choices
from plinth_workloads.serving.clients import client_of
from plinth_workloads.serving.disconnect import ClientGone, unless_gone
from plinth_workloads.serving.encoder_routes import add_encoder_routes
from plinth_workloads.serving.engine import (
    EngineOverloaded,
    GenerationFailed,
    InvalidParameter,
    InvalidPrompt,
    TokenDelta,
    UnknownAdapter,
)
from plinth_workloads.serving.limits import RequestTimedOut, within
from plinth_workloads.serving.metrics import MODEL_NAME, CountAnswers, ServiceMetrics
from plinth_workloads.serving.model_cards import ModelCard, ModelList
from plinth_workloads.serving.probes import PROBE_PATHS, add_probes
from plinth_workloads.serving.protocol import (
    ChatBody,
    CompletionBody,
    ErrorBody,
    now_seconds,
)
from plinth_workloads.serving.request_ids import RequestIds, request_id
from plinth_workloads.serving.served_model import ModelNotReady, ServedModel
from plinth_workloads.serving.served_names import ServedNames
from plinth_workloads.serving.tasks import label_names
from plinth_workloads.serving.version_counts import Turn

logger = logging.getLogger(__name__)

_CLIENT_CLOSED_REQUEST = 499
"""What nginx logs for a client that did not wait; nobody reads the answer."""

_LAST_EVENT_SECONDS = 1.0
"""For a client to take the event that its request has timed out."""

_ANSWERED_ERRORS = (
    ApiError,
    EngineOverloaded,
    GenerationFailed,
    HTTPException,
    InvalidParameter,
    InvalidPrompt,
    ModelNotReady,
    RequestTimedOut,
    RequestValidationError,
    UnknownAdapter,
    Exception,
)


class _EventStream(StreamingResponse):
    """Server-sent events, given up at `deadline`; what they are made from is closed however the response ends."""

    def __init__(self, events: AsyncIterator[str], deltas: Deltas, *, deadline: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._deltas, self._deadline = deltas, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self._deadline) as patience:
                await super().__call__(scope, receive, send)
        except TimeoutError:
            if not patience.expired():
                raise
            logger.warning("request %s: its client has not read the answer in time", request_id())
        finally:
            await self._deltas.aclose()


def build_asgi(
    served: ServedModel, names: ServedNames, *, keys: ApiKeys | None = None, front_repeats_ids: bool = False
) -> ASGIApp:
    """The application that answers for `served`.

    Args:
        served: The version in use.
        names: By which clients ask for it.
        keys: What opens everything but health, metrics, state and the chat page; None for everybody.
        front_repeats_ids: As for RequestIds.
    """
    app = FastAPI(title=names.base, openapi_url=None)
    app.add_middleware(LimitBody, limits=lambda: served.limits)
    if keys is not None:
        app.add_middleware(RequireKey, keys=keys, open_paths=PROBE_PATHS | PAGE_PATHS)
    metrics = ServiceMetrics(names.base, stats=served.stats)
    _add_models(app, served, names)
    _add_generation(app, served, names, metrics)
    add_encoder_routes(app, served, names=names, metrics=metrics)
    add_chat_page(app)
    add_probes(app, served, name=names.base, metrics=metrics, keys=keys)
    _add_error_handlers(app)
    endpoints = {path for route in app.routes if (path := getattr(route, "path", "")).startswith("/v1/")}
    counted = CountAnswers(app, metrics=metrics, endpoints=endpoints, unseen=PROBE_PATHS)
    return RequestIds(counted, front_repeats_ids=front_repeats_ids)


def _add_models(app: FastAPI, served: ServedModel, names: ServedNames) -> None:
    created = now_seconds()

    def model_cards() -> list[ModelCard]:
        base = base_card()
        adapters = served.adapters
        of_adapters = [
            base.model_copy(update={"id": adapter, "root": adapters.uri_of(adapter), "parent": names.base})
            for adapter in adapters.names
        ]
        own = [base, *of_adapters]
        return own + [
            card.model_copy(update={"id": other, "alias": names.aliases[card.id]})
            for card in own
            if (other := names.with_alias(card.id)) is not None
        ]

    def base_card() -> ModelCard:
        context_length = served.engine.context_length if served.engine else None
        return ModelCard(
            id=names.base,
            created=created,
            root=served.uri or served.target_uri,
            max_model_len=context_length,
            task=served.engine.task if served.engine else None,
            labels=label_names(served.engine) if served.engine else None,
        )

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=model_cards())

    @app.get("/v1/models/{model}")
    async def get_model(model: str) -> ModelCard:
        names.own_name(model, served.adapters.names)
        return next(card for card in model_cards() if card.id == model)


def _add_generation(app: FastAPI, served: ServedModel, names: ServedNames, metrics: ServiceMetrics) -> None:
    @app.post("/v1/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        answer = CompletionAnswer(body.model, with_logprobs=body.num_logprobs is not None)
        return await _answer(served, names, metrics, body, answer, request)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        answer = ChatAnswer(body.model, with_logprobs=body.num_logprobs is not None, tools=body.tool_use)
        return await _answer(served, names, metrics, body, answer, request)


def _add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ClientGone, _forget)
    for kind in _ANSWERED_ERRORS:
        app.add_exception_handler(kind, _answer_error)


async def _forget(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _answer_error(request: Request, error: Exception) -> Response:
    return logged_api_error_from(error).to_response()


async def _answer(
    served: ServedModel, names: ServedNames, metrics: ServiceMetrics, body: Body, answer: Answer, request: Request
) -> Response:
    name = names.own_name(body.model, served.adapters.names)
    adapter = None if name == names.base else name
    setattr(request.state, MODEL_NAME, name)
    seconds = served.limits.request_timeout_seconds
    deadline = asyncio.get_running_loop().time() + seconds + _LAST_EVENT_SECONDS
    turn = Turn()
    in_time = within(generate_choices(served, body, adapter, turn, client_of(request, body)), seconds=seconds)
    deltas = metrics.measured(in_time, model_name=name, num_choices=body.n, turn=turn)
    if not body.stream:
        return await unless_gone(request, _whole_answer(deltas, body, answer))
    # The first piece is awaited before the status is sent, so that a refusal is a status and not an event.
    first = await unless_gone(request, anext(deltas))
    return _EventStream(_events(first, deltas, body, answer), deltas, deadline=deadline)


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
            chunk = answer.chunk(index, delta)
            if chunk is not None:
                yield _event(chunk.model_dump_json(exclude=hidden))
        if body.includes_usage:
            yield _event(answer.usage_chunk(count.usage()).model_dump_json())
    except Exception as error:
        yield _event(ErrorBody(error=logged_api_error_from(error).detail).model_dump_json())
    yield _event("[DONE]")


async def _chained(first: tuple[int, TokenDelta], deltas: Deltas) -> AsyncIterator[tuple[int, TokenDelta]]:
    yield first
    async for item in deltas:
        yield item


def _event(data: str) -> str:
    return f"data: {data}\n\n"
