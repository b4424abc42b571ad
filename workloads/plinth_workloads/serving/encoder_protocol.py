"""Requests and responses of models that read: OpenAI's embeddings, and vLLM's classification.

https://platform.openai.com/docs/api-reference/embeddings,
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#classification-api. Enters: JSON bodies. Leaves:
typed requests, or a validation error that names the parameter.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic_core import PydanticCustomError

from plinth_workloads.serving.protocol import RequestBody, parse_texts

MAX_INPUTS = 2048
"""OpenAI's."""


def _parse_inputs(value: Any) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(value, str | list) and not value:
        raise PydanticCustomError("input", "is empty; give a text or token ids")
    if isinstance(value, list) and not all(isinstance(item, int) for item in value):
        if len(value) > MAX_INPUTS:
            raise PydanticCustomError(
                "input",
                "has {count} texts; a request may have {most}, so ask several times",
                {"count": len(value), "most": MAX_INPUTS},
            )
        empty = next((number for number, item in enumerate(value) if item in ("", [])), None)
        if empty is not None:
            raise PydanticCustomError("input", "is empty at {number}; leave it out", {"number": empty})
    return parse_texts(value)


class EncoderBody(RequestBody):
    """What embeddings and classification have in common."""

    input: Annotated[tuple[str | tuple[int, ...], ...], BeforeValidator(_parse_inputs)]


class EmbeddingBody(EncoderBody):
    """POST /v1/embeddings."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)


class ClassifyBody(EncoderBody):
    """POST /v1/classify."""


class EncoderUsage(BaseModel):
    """Tokens that a request's texts have, their marks included; nothing is made."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """The vector of one text: numbers, or the base64 of its little-endian 32-bit floats."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingResponse(BaseModel):
    """The answer to POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EncoderUsage


class Classification(BaseModel):
    """What one text is.

    Attributes:
        label: The likeliest one; None where there is a value.
        labels: Where a text may have several: those that are likelier than not.
        probs: Of each label.
        value: What the model says instead of probabilities, where it was trained for a value.
    """

    index: int
    label: str | None
    labels: list[str] | None = None
    probs: list[float]
    value: float | None = None
    num_classes: int

    @model_serializer(mode="wrap")
    def _leave_out_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Only a model that has several labels or a value tells them."""
        optional = ("labels", "value")
        return {name: it for name, it in serialize(self).items() if it is not None or name not in optional}


class ClassifyResponse(BaseModel):
    """The answer to POST /v1/classify."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classification]
    usage: EncoderUsage
