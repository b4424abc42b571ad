"""What /v1/models says of each served model: OpenAI's fields, vLLM's `max_model_len`, and what it is for.

Enters: what is known of a model. Leaves: a card. Apart from protocol.py, whose bodies ask a model for something.
"""

from typing import Literal

from pydantic import BaseModel

from plinth_api.run import ServingTask


class ModelCard(BaseModel):
    """One served model.

    Attributes:
        root: Its version.
        alias: That is followed, in the card of the name that ends with it.
        parent: The model that an adapter is for.
        task: What it does.
        labels: Of a model that classifies, in the order of its probabilities.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "plinth"
    root: str
    alias: str | None = None
    parent: str | None = None
    max_model_len: int | None
    task: ServingTask | None
    labels: list[str] | None = None


class ModelList(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
