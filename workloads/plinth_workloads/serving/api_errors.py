"""From exceptions to answers in the shape of OpenAI's API: a status, a body, and when to try again."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from plinth_workloads.serving.engine import (
    ContextLengthExceeded,
    EngineOverloaded,
    GenerationFailed,
    InvalidParameter,
    InvalidPrompt,
    NoChatTemplate,
    UnknownAdapter,
)
from plinth_workloads.serving.limits import RequestTimedOut
from plinth_workloads.serving.protocol import ErrorBody, ErrorDetail
from plinth_workloads.serving.request_ids import request_id
from plinth_workloads.serving.served_model import ModelNotReady

logger = logging.getLogger(__name__)

_INVALID = "invalid_request_error"
_SERVER = "server_error"


@dataclass(eq=False)
class ApiError(Exception):
    """An answer that is not a success."""

    status: int
    detail: ErrorDetail
    headers: Mapping[str, str] = field(default_factory=dict)

    def to_response(self) -> JSONResponse:
        """The answer as HTTP."""
        return JSONResponse(
            ErrorBody(error=self.detail).model_dump(), status_code=self.status, headers=dict(self.headers)
        )


def unknown_model(asked: str, *served: str) -> ApiError:
    """The answer to a request for a model that is not served here."""
    message = f"the model {asked!r} does not exist; this service serves {', '.join(map(repr, served))}"
    return ApiError(404, ErrorDetail(message=message, type=_INVALID, param="model", code="model_not_found"))


def wrong_key() -> ApiError:
    """The answer to a request without one of the keys that are asked for."""
    message = "a valid API key is needed: Authorization: Bearer KEY"
    detail = ErrorDetail(message=message, type=_INVALID, code="invalid_api_key")
    return ApiError(401, detail, {"WWW-Authenticate": "Bearer"})


def body_too_large(most_bytes: int) -> ApiError:
    """The answer to a request whose body has more bytes than it may."""
    message = f"the request's body is larger than the {most_bytes} bytes that this service takes; send less at once"
    return ApiError(413, ErrorDetail(message=message, type=_INVALID, code="body_too_large"))


def body_too_slow() -> ApiError:
    """The answer to a request whose body did not come in time."""
    message = "the request's body did not come in time; send it again, without a pause"
    return ApiError(408, ErrorDetail(message=message, type=_INVALID, code="body_too_slow"))


def logged_api_error_from(error: Exception) -> ApiError:
    """As `api_error_from`; a failure of ours is logged with the request's id."""
    answer = api_error_from(error)
    if answer.detail.code is None and answer.status >= 500:
        logger.error("request %s failed", request_id(), exc_info=error)
    elif answer.status >= 500 and not isinstance(error, ModelNotReady):
        logger.error("request %s failed: %s", request_id(), answer.detail.message)
    return answer


def api_error_from(error: Exception) -> ApiError:
    """The answer to a request that ended in `error`."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return _invalid_body(error)
        case ContextLengthExceeded():
            return _api_error(400, error, _INVALID, "context_length_exceeded")
        case NoChatTemplate():
            return _api_error(400, error, _INVALID, "no_chat_template")
        case InvalidPrompt():
            return _api_error(400, error, _INVALID, "invalid_prompt")
        case InvalidParameter():
            detail = ErrorDetail(message=str(error), type=_INVALID, param=error.param, code="invalid_value")
            return ApiError(400, detail)
        case EngineOverloaded():
            seconds = error.retry_after_seconds
            return _api_error(429, error, "rate_limit_error", "rate_limit_exceeded", retry_after_seconds=seconds)
        case ModelNotReady() | UnknownAdapter():
            return _api_error(503, error, _SERVER, "model_not_ready", retry_after_seconds=5)
        case GenerationFailed():
            return _api_error(500, error, _SERVER, "generation_failed")
        case RequestTimedOut():
            # OpenAI's clients would try twice more, each time as long.
            detail = ErrorDetail(message=str(error), type=_SERVER, code="request_timeout")
            return ApiError(504, detail, {"X-Should-Retry": "false"})
        case HTTPException():
            return ApiError(error.status_code, ErrorDetail(message=str(error.detail), type=_INVALID))
    return ApiError(500, ErrorDetail(message="the server failed; its log says why", type=_SERVER))


def _api_error(
    status: int, error: Exception, kind: str, code: str, *, retry_after_seconds: int | None = None
) -> ApiError:
    headers = {} if retry_after_seconds is None else {"Retry-After": str(retry_after_seconds)}
    return ApiError(status, ErrorDetail(message=str(error), type=kind, code=code), headers)


def _invalid_body(error: RequestValidationError) -> ApiError:
    """The first problem: clients show one message."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, ErrorDetail(message="the request's body is not JSON", type=_INVALID))
    if first["type"] == "unsupported_parameter":
        detail = ErrorDetail(message=first["msg"], type=_INVALID, param=first["ctx"]["name"], code=first["type"])
        return ApiError(400, detail)
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    return ApiError(400, ErrorDetail(message=f"{param or 'body'}: {first['msg']}", type=_INVALID, param=param))
