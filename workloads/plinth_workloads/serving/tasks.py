"""What a service does, and what is said to whoever asks it for something else.

Enters: the engine in service. Leaves: the same engine as what an endpoint needs, or OpenAI's error with the endpoint
that is served.
"""

from typing import cast

from plinth_api.run import ServingTask
from plinth_workloads.serving.api_errors import ApiError
from plinth_workloads.serving.encoder import Encoder
from plinth_workloads.serving.engine import Engine, ModelEngine
from plinth_workloads.serving.protocol import ErrorDetail

_SERVES: dict[ServingTask, str] = {
    "generate": "generates text; ask /v1/chat/completions or /v1/completions",
    "embed": "embeds texts; ask /v1/embeddings",
    "classify": "classifies texts; ask /v1/classify",
}


def generator_of(engine: ModelEngine) -> Engine:
    """The engine as one that generates text.

    Raises:
        ApiError: 400, it does something else.
    """
    _check(engine, "generate")
    return cast(Engine, engine)


def encoder_of(engine: ModelEngine, task: ServingTask) -> Encoder:
    """The engine as one that embeds or classifies.

    Raises:
        ApiError: 400, it does something else.
    """
    _check(engine, task)
    return cast(Encoder, engine)


def label_names(engine: ModelEngine) -> list[str] | None:
    """The labels of an engine that classifies, in the order of its probabilities; None for others."""
    labels = cast(Encoder, engine).labels if engine.task == "classify" else None
    return list(labels.names) if labels is not None else None


def _check(engine: ModelEngine, task: ServingTask) -> None:
    if engine.task != task:
        message = f"this service {_SERVES[engine.task]}"
        detail = ErrorDetail(message=message, type="invalid_request_error", param="model", code="endpoint_not_served")
        raise ApiError(400, detail)
