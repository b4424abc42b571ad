"""What a ModelService promises, around vLLM's own HTTP application, in the same process and under any ASGI server.

Enters: HTTP. Leaves: vLLM's answers on the endpoints of the service's task; API keys, limits, request ids, what chats
start with, health and the operator's state endpoint as the torch engine has them. Whatever else vLLM's application has
(adapters loaded by a path, raw tokens, its documentation) is not reached. Knows neither Ray nor vLLM.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plinth_api.model_service import PromptTemplate
from plinth_api.run import ServeLimits, ServingTask
from plinth_api.service_state import STATE_PATH, AdapterState, ServiceState
from plinth_workloads.serving.api_errors import ApiError, logged_api_error_from
from plinth_workloads.serving.api_keys import ApiKeys, RequireKey
from plinth_workloads.serving.body_limit import LimitBody
from plinth_workloads.serving.engine import GenerationFailed
from plinth_workloads.serving.inner_requests import Answer, ask, with_body
from plinth_workloads.serving.limits import timed_out
from plinth_workloads.serving.probes import HEALTH_PATH, LIVE_PATH, PROBE_PATHS, READY_PATH
from plinth_workloads.serving.protocol import ErrorBody, ErrorDetail
from plinth_workloads.serving.request_ids import RequestIds
from plinth_workloads.serving.served_names import ServedNames
from plinth_workloads.serving.vllm_requests import (
    ENDPOINTS,
    Body,
    Counted,
    needs_count,
    parsed,
    token_requests,
    with_service_opening,
    within_limits,
)

_MODELS_PATH = "/v1/models"
_TOKENIZE_PATH = "/tokenize"


@dataclass
class VllmService:
    """One service as its replica knows it; `limits`, `prompt` and the aliases of `names` may be set at any time.

    Attributes:
        names: By which clients ask for the model and its adapters.
        uri: The version in service.
        task: What it does.
        check_health: Returns once vLLM says that it is well, and raises where it is not.
        adapters: Those that are wanted.
        limits: What one request may ask for.
        prompt: What chats start with.
    """

    names: ServedNames
    uri: str
    task: ServingTask
    check_health: Callable[[], Awaitable[None]]
    adapters: tuple[AdapterState, ...] = ()
    limits: ServeLimits = field(default_factory=ServeLimits)
    prompt: PromptTemplate | None = None

    def own_name(self, asked: object) -> str:
        """As vLLM knows the model or the adapter that a request names; raises as ServedNames do."""
        return self.names.own_name(asked, [adapter.name for adapter in self.adapters])

    def why_not(self, model: str) -> str | None:
        """Why an adapter is not in service; None for what is."""
        return next((adapter.load_error for adapter in self.adapters if adapter.name == model), None)


def build_front(inner: ASGIApp, service: VllmService, *, keys: ApiKeys | None = None) -> ASGIApp:
    """The application of a service that vLLM serves.

    Args:
        inner: vLLM's.
        service: What it is for.
        keys: What opens everything but health and state; None for everybody.
    """
    app: ASGIApp = LimitBody(_Front(inner, service, keys), limits=lambda: service.limits)
    if keys is not None:
        app = RequireKey(app, keys=keys, open_paths=PROBE_PATHS)
    return RequestIds(app, front_repeats_ids=True)


class _Front:
    """ASGI application that answers what is the service's, and passes on what is vLLM's."""

    def __init__(self, inner: ASGIApp, service: VllmService, keys: ApiKeys | None) -> None:
        self._inner, self._service, self._keys = inner, service, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Started(send)
        try:
            await self._answer(scope, receive, answer)
        except Exception as error:
            await answer.fail(logged_api_error_from(error))

    async def _answer(self, scope: Scope, receive: Receive, send: "_Started") -> None:
        method, path = scope["method"], scope["path"]
        if method == "GET" and path in PROBE_PATHS:
            await (await self._probe(path))(scope, receive, send)
        elif method == "GET" and path == _MODELS_PATH:
            listed = JSONResponse({"object": "list", "data": await self._cards()})
            await listed(scope, receive, send)
        elif method == "GET" and path.startswith(f"{_MODELS_PATH}/"):
            card = JSONResponse(await self._card(path.removeprefix(f"{_MODELS_PATH}/")))
            await card(scope, receive, send)
        elif method == "POST" and path in ENDPOINTS[self._service.task]:
            await self._pass_on(scope, receive, send)
        else:
            raise _not_served(method, path, self._service.task)

    async def _pass_on(self, scope: Scope, receive: Receive, send: "_Started") -> None:
        seconds = self._service.limits.request_timeout_seconds
        try:
            async with asyncio.timeout(seconds) as patience:
                body = await self._as_the_service_lets(scope["path"], await _read_json(receive))
                await self._inner(*with_body(scope, receive, json.dumps(body).encode()), send)
        except TimeoutError:
            if not patience.expired():
                raise
            raise timed_out(seconds) from None

    async def _as_the_service_lets(self, path: str, body: Body) -> Body:
        service = self._service
        # vLLM takes a request that names none for the base model.
        if body.get("model") is not None:
            body = {**body, "model": service.own_name(body["model"])}
            if why := service.why_not(body["model"]):
                raise _adapter_not_ready(body["model"], why)
        body = with_service_opening(path, body, service.prompt)
        counted = await self._count(path, body) if needs_count(path, body, service.limits) else Counted(())
        return within_limits(path, body, service.limits, counted)

    async def _count(self, path: str, body: Body) -> Counted:
        counts: list[int] = []
        context_length = None
        for request in token_requests(path, body):
            if isinstance(request, int):
                counts.append(request)
                continue
            answer = await ask(self._inner, "POST", _TOKENIZE_PATH, request)
            if answer.status != 200:
                raise _refused(answer)
            counts.append(int(answer.content["count"]))
            context_length = int(answer.content["max_model_len"])
        return Counted(tuple(counts), context_length)

    async def _cards(self) -> list[dict[str, Any]]:
        """What vLLM has, and each once more by the alias that it follows."""
        names, listed = self._service.names, await ask(self._inner, "GET", _MODELS_PATH)
        if listed.status != 200:
            raise GenerationFailed(f"vLLM could not list its models: {listed.status}")
        cards = list(listed.content["data"])
        followed = [card for card in cards if card["id"] in names.aliases]
        return cards + [
            {**card, "id": names.with_alias(card["id"]), "alias": names.aliases[card["id"]]} for card in followed
        ]

    async def _card(self, name: str) -> dict[str, Any]:
        own = self._service.own_name(name)
        found = next((card for card in await self._cards() if card["id"] == name), None)
        if found is None:
            raise _adapter_not_ready(own, self._service.why_not(own) or "vLLM does not list it")
        return found

    async def _probe(self, path: str) -> JSONResponse:
        if path == STATE_PATH:
            return JSONResponse(self._state().to_wire())
        if path == LIVE_PATH:
            return JSONResponse({"status": "ok", "message": "the process answers"})
        if path not in (HEALTH_PATH, READY_PATH):
            raise _metrics_elsewhere()
        try:
            await self._service.check_health()
        except Exception as error:
            return JSONResponse({"status": "unhealthy", "message": str(error)}, 503)
        return JSONResponse({"status": "ok", "message": f"{self._service.uri} answers"})

    def _state(self) -> ServiceState:
        service = self._service
        return ServiceState(
            name=service.names.base,
            model_uri=service.uri,
            target_uri=service.uri,
            loaded=True,
            adapters=service.adapters,
            prompt_hash=service.prompt.digest if service.prompt else "",
            api_keys=None if self._keys is None else len(self._keys),
        )


class _Started:
    """Sends an answer on, and knows how far it is: an error is a status before it, and an event within a stream."""

    def __init__(self, send: Send) -> None:
        self._send, self._started, self._ended, self._is_stream = send, False, False, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            kind = Headers(raw=list(message.get("headers", ()))).get("content-type", "")
            self._is_stream = kind.startswith("text/event-stream")
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Tell the client, as far as that can be done."""
        if not self._started:
            response = error.to_response()
            headers = [(name, value) for name, value in response.raw_headers]
            await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})
            await self._send({"type": "http.response.body", "body": response.body})
        elif not self._ended:
            told = ErrorBody(error=error.detail).model_dump_json()
            events = f"data: {told}\n\ndata: [DONE]\n\n".encode() if self._is_stream else b""
            await self._send({"type": "http.response.body", "body": events, "more_body": False})


async def _read_json(receive: Receive) -> Body:
    """The body, which LimitBody has read already."""
    pieces, more = bytearray(), True
    while more:
        message = await receive()
        pieces += message.get("body", b"")
        more = message.get("more_body", False)
    try:
        content = json.loads(bytes(pieces))
    except (ValueError, RecursionError):
        raise ApiError(400, _invalid("the request's body is not JSON")) from None
    return parsed(content)


def _refused(answer: Answer) -> Exception:
    """What vLLM refuses a prompt with, in its words; or that it failed."""
    error = answer.content.get("error", {})
    if not 400 <= answer.status < 500:
        return GenerationFailed(f"vLLM could not count the tokens of the prompt: {error.get('message', answer.status)}")
    return ApiError(answer.status, _invalid(str(error.get("message", "")), param=error.get("param")))


def _not_served(method: str, path: str, task: ServingTask) -> ApiError:
    served = " and ".join(ENDPOINTS[task])
    return ApiError(404, _invalid(f"{method} {path} is not served here; this service has {served}"))


def _adapter_not_ready(name: str, why: str) -> ApiError:
    detail = ErrorDetail(message=f"adapter {name} cannot be served: {why}", type="server_error", code="model_not_ready")
    return ApiError(503, detail)


def _metrics_elsewhere() -> ApiError:
    return ApiError(404, _invalid("engine vllm has its metrics on Ray's port of each pod, 8080, as ray_vllm_*"))


def _invalid(message: str, *, param: str | None = None) -> ErrorDetail:
    return ErrorDetail(message=message, type="invalid_request_error", param=param)
