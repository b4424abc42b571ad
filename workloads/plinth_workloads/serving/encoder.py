"""What an encoder is: texts as token ids enter, a row of numbers for each leaves, all at once.

Apart from the engine, so that the app needs no torch to be imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from plinth_workloads.serving.engine import ModelEngine

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Labels:
    """What the numbers of a classifier stand for.

    Attributes:
        names: One for each number.
        kind: Whether a text has one of the labels, several of them, or a value, which is no probability.
    """

    names: tuple[str, ...]
    kind: Literal["one", "several", "value"]


class Encoder(ModelEngine, Protocol):
    """A model that embeds or classifies texts."""

    @property
    def width(self) -> int:
        """How many numbers a text has: the size of an embedding, or one for each label."""

    @property
    def labels(self) -> Labels | None:
        """What the numbers stand for; None for embeddings."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts; safe to call from any thread."""

    async def compute(self, rows: Sequence[Sequence[int]], client: str = "") -> FloatArray:
        """The numbers of texts, [N, width]: embeddings of length one, probabilities, or values. May be cancelled.

        Args:
            rows: Token ids of each text.
            client: Who asks: clients take turns.

        Raises:
            InvalidPrompt: A text has no tokens, or ids that the model does not know.
            ContextLengthExceeded: A text has more than `context_length`.
            EngineOverloaded: Too much waits already.
            GenerationFailed: The model failed on this request; the engine goes on with the others.
        """
