"""The endpoints of models that read: /v1/embeddings and /v1/classify.

Enters: requests as JSON. Leaves: OpenAI's embeddings, whole, cut or in base64, and vLLM's classification.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from plinth_api.run import ServingTask
from plinth_workloads.serving.clients import client_of
from plinth_workloads.serving.disconnect import unless_gone
from plinth_workloads.serving.encoder import Encoder, FloatArray, Labels
from plinth_workloads.serving.encoder_protocol import (
    Classification,
    ClassifyBody,
    ClassifyResponse,
    Embedding,
    EmbeddingBody,
    EmbeddingResponse,
    EncoderBody,
    EncoderUsage,
)
from plinth_workloads.serving.engine import InvalidParameter
from plinth_workloads.serving.limits import check_prompt, in_time
from plinth_workloads.serving.metrics import MODEL_NAME, ServiceMetrics
from plinth_workloads.serving.protocol import new_id, now_seconds
from plinth_workloads.serving.served_model import ServedModel
from plinth_workloads.serving.served_names import ServedNames
from plinth_workloads.serving.tasks import encoder_of
from plinth_workloads.serving.version_counts import Turn


@dataclass(frozen=True, slots=True)
class _Computed:
    """The numbers of a request's texts, [N, W], what they stand for, and how many tokens were read."""

    values_NW: FloatArray
    labels: Labels | None
    num_tokens: int

    def usage(self) -> EncoderUsage:
        return EncoderUsage(prompt_tokens=self.num_tokens, total_tokens=self.num_tokens)


def add_encoder_routes(app: FastAPI, served: ServedModel, *, names: ServedNames, metrics: ServiceMetrics) -> None:
    """Let `app` embed and classify by the version in service.

    Args:
        app: Which answers exceptions as `api_error_from` has it.
        served: The version in service.
        names: By which clients ask for it.
        metrics: What is counted.
    """

    async def answer(
        body: EncoderBody, task: ServingTask, request: Request, write: Callable[[_Computed], BaseModel]
    ) -> Response:
        setattr(request.state, MODEL_NAME, names.own_name(body.model))
        turn = Turn()
        computed = in_time(
            _computed(served, body, task, turn, client_of(request, body)), seconds=served.limits.request_timeout_seconds
        )
        return await unless_gone(
            request, written(metrics.measured_reading(computed, model_name=names.base, turn=turn), write)
        )

    async def written(work: Awaitable[_Computed], write: Callable[[_Computed], BaseModel]) -> Response:
        computed = await work
        metrics.count_prompt_tokens(computed.num_tokens, model_name=names.base)
        # The numbers of thousands of texts take their time as JSON, in which others are answered.
        content = await asyncio.to_thread(lambda: write(computed).model_dump_json())
        return Response(content, media_type="application/json")

    @app.post("/v1/embeddings")
    async def embed(body: EmbeddingBody, request: Request) -> Response:
        return await answer(body, "embed", request, lambda computed: _embeddings(body, computed))

    # Where vLLM has it, beside where clients with OpenAI's base_url look for it.
    @app.post("/classify")
    @app.post("/v1/classify")
    async def classify(body: ClassifyBody, request: Request) -> Response:
        return await answer(body, "classify", request, lambda computed: _classifications(body, computed))


async def _computed(served: ServedModel, body: EncoderBody, task: ServingTask, turn: Turn, client: str) -> _Computed:
    async with served.admitted(turn) as version:
        encoder = encoder_of(version.engine, task)
        if isinstance(body, EmbeddingBody) and body.dimensions is not None and body.dimensions > encoder.width:
            raise InvalidParameter(
                "dimensions", f"dimensions: {body.dimensions} is more than the model's {encoder.width}"
            )
        rows = await asyncio.to_thread(_rows_of, encoder, body.input)
        check_prompt(served.limits, max(map(len, rows)), param="input")
        values_NW = await encoder.compute(rows, client)
        return _Computed(values_NW, encoder.labels, sum(map(len, rows)))


def _rows_of(encoder: Encoder, inputs: Sequence[str | tuple[int, ...]]) -> list[Sequence[int]]:
    encoded = iter(encoder.encode([text for text in inputs if isinstance(text, str)]))
    return [next(encoded) if isinstance(item, str) else item for item in inputs]


def _embeddings(body: EmbeddingBody, computed: _Computed) -> EmbeddingResponse:
    vectors_ND = computed.values_NW
    if body.dimensions is not None:
        cut_ND = vectors_ND[:, : body.dimensions]
        vectors_ND = cut_ND / np.maximum(np.linalg.norm(cut_ND, axis=1, keepdims=True), np.float32(1e-12))
    return EmbeddingResponse(
        data=[
            Embedding(
                index=index, embedding=_in_base64(vector) if body.encoding_format == "base64" else vector.tolist()
            )
            for index, vector in enumerate(vectors_ND)
        ],
        model=body.model,
        usage=computed.usage(),
    )


def _in_base64(vector_D: FloatArray) -> str:
    return base64.b64encode(vector_D.astype("<f4").tobytes()).decode()


def _classifications(body: ClassifyBody, computed: _Computed) -> ClassifyResponse:
    assert computed.labels is not None
    return ClassifyResponse(
        id=new_id("classify"),
        created=now_seconds(),
        model=body.model,
        data=[_classification(index, row.tolist(), computed.labels) for index, row in enumerate(computed.values_NW)],
        usage=computed.usage(),
    )


def _classification(index: int, numbers: list[float], labels: Labels) -> Classification:
    count = len(numbers)
    if labels.kind == "value":
        return Classification(index=index, label=None, probs=[], value=numbers[0], num_classes=count)
    likeliest = labels.names[max(range(count), key=numbers.__getitem__)]
    several = [name for name, share in zip(labels.names, numbers, strict=True) if share > 0.5]
    return Classification(
        index=index,
        label=likeliest,
        labels=several if labels.kind == "several" else None,
        probs=numbers,
        num_classes=count,
    )
