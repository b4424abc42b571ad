"""An engine that says what the test tells it to."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plinth_api.run import ServingTask
from plinth_workloads.serving.engine import ChatMessage, EngineStats, GenerationFailed, GenerationRequest, TokenDelta


class FakeEngine:
    """Says `words`, one a token; waits for `gate` before the last."""

    def __init__(self, words: Sequence[str] = ("a", "b"), *, healthy: bool = True, fails_after: int | None = None):
        self.words = words
        self.healthy = healthy
        self.fails_after = fails_after
        self.gate = asyncio.Event()
        self.gate.set()
        self.num_running = 0
        self.requests: list[GenerationRequest] = []
        self.places: list[str] = []
        self.messages: Sequence[ChatMessage] = ()
        self.tools: Sequence[Mapping[str, Any]] = ()
        self.is_stopped = False
        self.adapters: dict[str, Path] = {}

    @property
    def task(self) -> ServingTask:
        return "generate"

    @property
    def context_length(self) -> int:
        return 64

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        self.messages, self.tools = messages, tools
        return self.encode("".join(f"{message.role}:{message.content};" for message in messages))

    @contextmanager
    def place_for(self, client: str) -> Iterator[None]:
        self.places.append(client)
        yield

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        assert not self.is_stopped
        self.requests.append(request)
        self.num_running += 1
        try:
            for made, word in enumerate(self.words, start=1):
                if self.fails_after == made - 1:
                    raise GenerationFailed("broken")
                is_last = made == len(self.words)
                if is_last:
                    await self.gate.wait()
                yield TokenDelta(word, len(request.prompt_ids), made, "stop" if is_last else None)
        finally:
            self.num_running -= 1

    async def attach_adapter(self, name: str, folder: Path) -> None:
        self.adapters[name] = folder

    async def detach_adapter(self, name: str) -> None:
        del self.adapters[name]

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        assert self.num_running == 0
        self.is_stopped = True

    async def check_health(self) -> None:
        if not self.healthy:
            raise GenerationFailed("no token")

    async def warm_up(self) -> None:
        await self.check_health()

    def stats(self) -> EngineStats:
        return EngineStats(running=self.num_running, waiting=0)
