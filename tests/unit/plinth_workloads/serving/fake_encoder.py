"""An encoder that gives the numbers that the test tells it to."""

import asyncio
from collections.abc import Sequence

import numpy as np

from plinth_api.run import ServingTask
from plinth_workloads.serving.encoder import FloatArray, Labels
from plinth_workloads.serving.engine import EngineStats, GenerationFailed


class FakeEncoder:
    """Gives each text `numbers` once `gate` is open; embeds where it has no labels."""

    def __init__(
        self, numbers: Sequence[float] = (0.6, 0.8), labels: Labels | None = None, *, fails: bool = False
    ) -> None:
        self.numbers, self._labels, self._fails = numbers, labels, fails
        self.gate = asyncio.Event()
        self.gate.set()
        self.rows: list[Sequence[int]] = []
        self.clients: list[str] = []
        self.num_running = 0

    @property
    def task(self) -> ServingTask:
        return "classify" if self._labels else "embed"

    @property
    def context_length(self) -> int:
        return 64

    @property
    def width(self) -> int:
        return len(self.numbers)

    @property
    def labels(self) -> Labels | None:
        return self._labels

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    async def compute(self, rows: Sequence[Sequence[int]], client: str = "") -> FloatArray:
        self.rows += rows
        self.clients.append(client)
        self.num_running += 1
        try:
            await self.gate.wait()
        finally:
            self.num_running -= 1
        if self._fails:
            raise GenerationFailed("broken")
        return np.array([self.numbers] * len(rows), np.float32)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def warm_up(self) -> None:
        await self.check_health()

    async def check_health(self) -> None:
        pass

    def stats(self) -> EngineStats:
        return EngineStats(running=self.num_running, waiting=0)
