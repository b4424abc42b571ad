"""From a request's body to its choices: prompts are encoded, each choice is generated, and their pieces are merged."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from plinth_api.model_service import PromptTemplate
from plinth_api.run import ServeLimits
from plinth_workloads.serving.chat_opening import with_opening
from plinth_workloads.serving.chat_turns import chat_messages
from plinth_workloads.serving.engine import Engine, GenerationRequest, SamplingParameters, TokenDelta
from plinth_workloads.serving.limits import check_prompt, max_tokens_of
from plinth_workloads.serving.protocol import ChatBody, CompletionBody, Usage
from plinth_workloads.serving.served_model import ServedModel
from plinth_workloads.serving.tasks import generator_of
from plinth_workloads.serving.version_counts import Turn

_MAX_AT_ONCE = 64
"""Choices of a request that an engine holds: more than it decodes together, less than a request may have (2,048)."""

Body = CompletionBody | ChatBody
Deltas = AsyncGenerator[tuple[int, TokenDelta], None]


@dataclass
class UsageCount:
    """Counts tokens over the pieces of all choices; `num_choices` is the request's n."""

    num_choices: int
    _last: dict[int, TokenDelta] = field(default_factory=dict)

    def add(self, index: int, delta: TokenDelta) -> None:
        """Take a piece of choice `index` into account."""
        self._last[index] = delta

    @property
    def num_completion_tokens(self) -> int:
        """Tokens made so far."""
        return sum(delta.num_completion_tokens for delta in self._last.values())

    def usage(self) -> Usage:
        """The counts so far."""
        prompt = sum(delta.num_prompt_tokens for index, delta in self._last.items() if index % self.num_choices == 0)
        completion = self.num_completion_tokens
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


async def generate_choices(
    served: ServedModel, body: Body, adapter: str | None, turn: Turn, client: str = ""
) -> Deltas:
    """Pieces of all choices as they are made, each with the index of its choice: prompt * n + number.

    Closing the generator cancels what still runs. All choices come from one version, that to which `turn` fell, with
    `adapter` where that is given. `client` is who asks.
    """
    async with served.admitted(turn, adapter=adapter) as version:
        engine = generator_of(version.engine)
        if adapter is not None:
            served.check_adapter(version, adapter)
        with engine.place_for(client):
            needed = (engine, version.prompt, body, served.limits)
            requests = _requests_of(*needed) if _is_encoded(body) else await asyncio.to_thread(_requests_of, *needed)
            asked = [replace(request, adapter=adapter, client=client) for request in requests]
            async with aclosing(_merged(engine, asked) if len(asked) > 1 else _only(engine, *asked)) as deltas:
                async for index, delta in deltas:
                    yield index, delta


def _is_encoded(body: Body) -> bool:
    """Whether nothing is left to do that takes a thread: few prompts, all of them token ids."""
    if isinstance(body, ChatBody) or len(body.prompt) * body.n > _MAX_AT_ONCE:
        return False
    return not any(isinstance(prompt, str) for prompt in body.prompt)


def _requests_of(
    engine: Engine, prompt: PromptTemplate | None, body: Body, limits: ServeLimits
) -> list[GenerationRequest]:
    requests = []
    structure = body.structure
    for prompt_ids in _prompts_of(engine, prompt, body):
        check_prompt(limits, len(prompt_ids), param="prompt" if isinstance(body, CompletionBody) else "messages")
        max_tokens = max_tokens_of(limits, body, num_free=max(1, engine.context_length - len(prompt_ids)))
        for number in range(body.n):
            sampling = SamplingParameters(
                max_tokens=max_tokens,
                temperature=body.temperature,
                top_p=body.top_p,
                top_k=body.top_k,
                min_p=body.min_p,
                repetition_penalty=body.repetition_penalty,
                presence_penalty=body.presence_penalty,
                frequency_penalty=body.frequency_penalty,
                logit_bias=body.logit_bias,
                num_logprobs=body.num_logprobs,
                seed=None if body.seed is None else body.seed + number,
                stop=body.stop,
                structure=structure,
            )
            requests.append(GenerationRequest(prompt_ids, sampling))
    return requests


def _prompts_of(engine: Engine, prompt: PromptTemplate | None, body: Body) -> list[tuple[int, ...]]:
    if isinstance(body, CompletionBody):
        return [tuple(engine.encode(text)) if isinstance(text, str) else text for text in body.prompt]
    use = body.tool_use
    tools = use.tools if use is not None else ()
    return [tuple(engine.encode_chat(with_opening(prompt, chat_messages(body.messages)), tools))]


async def _only(engine: Engine, request: GenerationRequest) -> Deltas:
    async with aclosing(engine.generate(request)) as deltas:
        async for delta in deltas:
            yield 0, delta


async def _merged(engine: Engine, requests: Sequence[GenerationRequest]) -> Deltas:
    queue: asyncio.Queue[tuple[int, TokenDelta | Exception]] = asyncio.Queue()
    turns = asyncio.Semaphore(_MAX_AT_ONCE)

    async def pump(index: int, request: GenerationRequest) -> None:
        try:
            async with turns, aclosing(engine.generate(request)) as deltas:
                async for delta in deltas:
                    queue.put_nowait((index, delta))
        except Exception as error:
            queue.put_nowait((index, error))

    tasks = [asyncio.create_task(pump(index, request)) for index, request in enumerate(requests)]
    num_unfinished = len(tasks)
    try:
        while num_unfinished:
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            num_unfinished -= item.finish_reason is not None
            yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
