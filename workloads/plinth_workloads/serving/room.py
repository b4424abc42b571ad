"""Whether a version fits beside the one in service, and how requests wait where it does not.

Enters: bytes that a version needs and that are free. Leaves: a sentence where they do not suffice; and a gate before
the engines, which is shut while one version makes room for the next.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plinth_workloads.models.stored_size import num_stored

_BYTES_EACH = 4
"""Weights are loaded in float32."""

_SPARE = 1.25
"""With what is needed beside them: a weight twice while it is converted, the cache of a few rows, a step."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a version needs, and what there is beside the one in service."""

    needed_bytes: int
    free_bytes: int

    def lacking(self, uri: str, beside: str) -> str | None:
        """Why `uri` cannot be loaded now; None where it can."""
        if self.needed_bytes <= self.free_bytes:
            return None
        needed, free = self.needed_bytes / 2**30, self.free_bytes / 2**30
        return f"{uri} needs {needed:.2f} GiB beside {beside}, and {free:.2f} GiB are free"


RoomFor = Callable[[str], Room]
"""From a model's URI to the room for it; blocks, as the model is fetched for it, and raises UserError."""


def needed_bytes(*folders: Path) -> int:
    """Memory that a model takes once it is loaded: an adapter's folder counts with that of its base."""
    return int(sum(map(num_stored, folders)) * _BYTES_EACH * _SPARE)


class Gate:
    """Before the engines; open but for while it is shut.

    Attributes:
        reason: Why it is shut; None while it is open.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._is_open = asyncio.Event()
        self._is_open.set()

    def shut(self, reason: str) -> None:
        """Let requests wait."""
        self.reason = reason
        self._is_open.clear()

    def open(self) -> None:
        """Let them pass."""
        self.reason = None
        self._is_open.set()

    async def passed(self, seconds: float) -> bool:
        """Whether it was open, or opened in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._is_open.wait()
        except TimeoutError:
            return False
        return True
