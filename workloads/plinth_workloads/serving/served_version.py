"""One version in service: its engine, what chats with it start with, its adapters, and who still needs it.

Apart from served_model.py so that a version that is tried is the same thing as the one in service.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from plinth_api.model_service import PromptTemplate
from plinth_workloads.serving.engine import ModelEngine


@dataclass(eq=False)
class Version:
    """A model in service, what chats with it start with, and the URIs of its adapters by name."""

    uri: str
    engine: ModelEngine
    prompt: PromptTemplate | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    leases: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def leased(self) -> Iterator["Version"]:
        """Itself; its engine is not taken away before the end of the block."""
        self.leases += 1
        try:
            yield self
        finally:
            self.leases -= 1
            if self.leases == 0:
                self.idle.set()

    async def finished(self) -> None:
        """Return once nobody needs it."""
        while self.leases:
            self.idle.clear()
            await self.idle.wait()

    async def retire(self) -> None:
        """Stop its engine once nobody needs it."""
        await self.finished()
        await self.engine.stop()
