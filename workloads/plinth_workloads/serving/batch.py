"""What an engine decodes with: rows of tokens whose keys and values are kept between steps.

Apart from its two kinds, so that the engine schedules both alike: slots for models whose attention can be handed to us,
padded rows for all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from plinth_workloads.serving.engine import CacheUse
from plinth_workloads.serving.lora_bank import LoraAdapter, LoraBank


@dataclass(eq=False)
class CachedRow:
    """A row's place in the cache.

    Attributes:
        length: Tokens of the row whose keys and values are kept.
        slot: Where; the batch's own.
        adapter: With which the row is computed; None for the model as it is.
    """

    length: int = 0
    slot: int = -1
    adapter: LoraAdapter | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """The next tokens of a row, at least one."""

    row: CachedRow
    token_ids: Sequence[int]


class Batch(Protocol):
    """Rows of one model that are computed together. Use under `torch.inference_mode`, from one thread."""

    reads_in_pieces: bool
    """Whether the prompt of a row may come in several pieces; else it comes whole, and every row has a part in each
    step once it has begun."""

    adapters: LoraBank | None
    """With which rows may be computed; None where the batch has no way to do it."""

    def open(self, token_ids: Sequence[int], adapter: LoraAdapter | None = None) -> CachedRow | None:
        """A place for a row that begins with `token_ids`, less than all of which may be there already; None for now."""

    def make_room(self, pieces: Sequence[Piece]) -> bool:
        """Whether there is room for these pieces; where not, it helps to close rows."""

    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        """Read the next tokens of some rows.

        Returns:
            Logits (R, V) after the last token of each piece, in float32.

        Raises:
            Exception: What the model raises. Rows in slots are as they were; padded rows are lost: `clear` the batch.
        """

    def close(self, row: CachedRow, *, spoiled: bool = False) -> None:
        """Let go of a row.

        Args:
            row: Which is not used again.
            spoiled: Whether nothing of it may be of use to others, as where it holds what is not a number.
        """

    def clear(self) -> None:
        """Let go of all rows."""

    def compile(self) -> None:
        """Compile what steps compute, where that can be done and gives the same; all rows are let go of.

        Takes from seconds to minutes; what stands in the way is logged.
        """

    def use(self) -> CacheUse:
        """How full the cache is; safe to call from any thread."""
