"""The light engine: torch and transformers, one worker thread, rows that join and leave between steps.

Requests enter from the event loop, as many as there are places, and their clients take turns; the worker reads prompts
in pieces between the tokens that it makes for others, and hands the text of each step back to the loop at once.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, aclosing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plinth_api.run import ServingTask
from plinth_workloads.errors import UserError
from plinth_workloads.models.packed_linear import pack_linear_layers
from plinth_workloads.models.virtual_tokens import num_virtual_tokens
from plinth_workloads.serving.batch import Batch
from plinth_workloads.serving.brief_thread import in_brief_thread
from plinth_workloads.serving.engine import (
    ChatMessage,
    ContextLengthExceeded,
    EngineStats,
    GenerationFailed,
    GenerationRequest,
    InvalidParameter,
    InvalidPrompt,
    SamplingParameters,
    TokenDelta,
    UnknownAdapter,
)
from plinth_workloads.serving.errands import in_one_part
from plinth_workloads.serving.generation_row import Row
from plinth_workloads.serving.lora_bank import LoraAdapter, load_lora
from plinth_workloads.serving.padded_batch import PaddedBatch
from plinth_workloads.serving.places import Places
from plinth_workloads.serving.prompt_encoder import PromptEncoder
from plinth_workloads.serving.slotted_batch import slotted_batch
from plinth_workloads.serving.step_worker import StepWorker, Told
from plinth_workloads.serving.structured_output import StructuredOutputs
from plinth_workloads.serving.token_bounds import positions_of, unknown_token
from plinth_workloads.serving.warm_up import warm_up_generation

logger = logging.getLogger(__name__)

_HEALTH_POLL_SECONDS = 0.05
_CUDA_STEP_TOKENS = 2048
_CPU_STEP_TOKENS = (256, 1024)
"""Fewer make products of matrices slow, more gain nothing."""
_CPU_STEP_FLOPS = 2e10
"""A fifth of a second on two cores, between these bounds."""


class TorchEngine:
    """Continuous batching over a Hugging Face causal language model.

    Args:
        model: In evaluation mode, on its device; on a CPU its linear layers are packed from now on.
        tokenizer: With a chat template, where chats are to be answered.
        max_batch_size: Rows that are decoded together.
        max_waiting: Requests that may be open beyond so many; more raise EngineOverloaded, see `Places`.
        max_step_tokens: Tokens that one step reads, of prompts and of rows that make text together. Default: as few as
            keep the device busy, so that a prompt that is read holds others up for as short as can be.
        max_cache_bytes: Of keys and values; one row of the context's length is held in any case.
        context_length: Default: the model's own.
        compile: Whether to compile the model, which `warm_up` then does first; see `Batch.compile`.
        health_timeout_seconds: How long `check_health` waits for a token.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_batch_size: int = 64,
        max_waiting: int = 128,
        max_step_tokens: int | None = None,
        max_cache_bytes: int = 2**31,
        context_length: int | None = None,
        compile: bool = False,
        health_timeout_seconds: float = 30.0,
    ) -> None:
        pack_linear_layers(model, partial(_some_logits, model))
        self._model = model
        self._encoder = PromptEncoder(tokenizer)
        self._places = Places(max_batch_size + max_waiting)
        self._context_length = context_length or positions_of(model) - num_virtual_tokens(model)
        self._compile, self._health_timeout_seconds = compile, health_timeout_seconds
        self._vocab_size: int = model.get_input_embeddings().num_embeddings
        end_ids = _end_ids_of(model, tokenizer)
        self._structured = StructuredOutputs(tokenizer, end_ids=end_ids, vocab_size=self._vocab_size)
        self._batch = _batch_for(
            model, max_rows=max_batch_size, max_length=self._context_length, max_bytes=max_cache_bytes
        )
        self._worker = StepWorker(
            model,
            self._batch,
            end_ids=end_ids,
            max_step_tokens=max_step_tokens or _step_tokens_for(model),
            deliver=self._hand_over,
        )
        self._adapters: dict[str, LoraAdapter] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def task(self) -> ServingTask:
        """See Engine."""
        return "generate"

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its completion together."""
        return self._context_length

    def encode(self, text: str) -> list[int]:
        """See Engine."""
        return self._encoder.encode(text)

    def encode_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """See Engine."""
        return self._encoder.encode_chat(messages, tools)

    def stats(self) -> EngineStats:
        """See Engine."""
        return EngineStats(self._worker.num_running, self._worker.num_waiting, self._batch.use())

    async def start(self) -> None:
        """See Engine."""
        self._loop = asyncio.get_running_loop()
        self._worker.start()

    async def stop(self) -> None:
        """See Engine."""
        await asyncio.to_thread(self._worker.stop)
        self._structured.close()

    def place_for(self, client: str) -> AbstractContextManager[None]:
        """See Engine."""
        return self._places.taken_by(client)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """See Engine."""
        self._check(request)
        constraint = await self._structured.constraint_of(request.sampling.structure)
        adapter = None if request.adapter is None else self._adapters.get(request.adapter)
        if request.adapter is not None and adapter is None:
            raise UnknownAdapter(f"no adapter {request.adapter!r} is attached")
        row = Row(request, self._encoder.tokenizer, adapter=adapter, constraint=constraint)
        async with aclosing(self._deltas_of(row)) as deltas:
            async for delta in deltas:
                yield delta

    async def attach_adapter(self, name: str, folder: Path) -> None:
        """See Engine."""
        bank = self._batch.adapters
        if bank is None:
            kind = self._model.config.model_type
            raise UserError(
                "ModelLoadFailed", f"{folder}: no adapters are served beside a {kind}; serve it as spec.model"
            )
        weights = await in_brief_thread(load_lora, folder, self._model)
        attaching = self._worker.between_steps(bank.attach(name, weights))
        try:
            attached = await asyncio.wrap_future(attaching)
        except asyncio.CancelledError:
            attaching.add_done_callback(self._give_place_back)
            raise
        before, self._adapters[name] = self._adapters.get(name), attached
        if before is not None:
            self._worker.release(before)

    def _give_place_back(self, attaching: Future[LoraAdapter]) -> None:
        """Of an adapter that nobody waits for any more, which comes all the same once it is on its way."""
        if not attaching.cancelled() and attaching.exception() is None:
            self._worker.release(attaching.result())

    async def detach_adapter(self, name: str) -> None:
        """See Engine."""
        self._worker.release(self._adapters.pop(name))

    async def check_health(self) -> None:
        """See Engine. Where others are being answered, any new token is proof enough."""
        began = time.monotonic()
        probe = asyncio.create_task(self._probe())
        try:
            while not probe.done() and self._worker.last_token_at < began:
                if time.monotonic() - began > self._health_timeout_seconds:
                    raise GenerationFailed(f"no token within {self._health_timeout_seconds:.0f} s")
                await asyncio.wait({probe}, timeout=_HEALTH_POLL_SECONDS)
            if probe.done():
                probe.result()
        finally:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)

    async def warm_up(self) -> None:
        """See Engine."""
        if self._compile:
            await asyncio.wrap_future(self._worker.between_steps(in_one_part(self._batch.compile)))
        await self.check_health()
        await warm_up_generation(self)

    async def _probe(self) -> None:
        request = GenerationRequest((self._encoder.first_id or 0,), SamplingParameters(max_tokens=1, temperature=0))
        async for _ in self._deltas_of(Row(request, self._encoder.tokenizer), first=True):
            pass

    def _check(self, request: GenerationRequest) -> None:
        biased = unknown_token([token for token, _ in request.sampling.logit_bias], self._vocab_size)
        if biased is not None:
            raise InvalidParameter("logit_bias", f"logit_bias: {biased}")
        if not request.prompt_ids:
            raise InvalidPrompt("the prompt is empty")
        unknown = unknown_token(request.prompt_ids, self._vocab_size)
        if unknown is not None:
            raise InvalidPrompt(unknown)
        prompt, completion = len(request.prompt_ids), request.sampling.max_tokens
        if prompt + completion > self._context_length:
            raise ContextLengthExceeded(
                f"this model's context length is {self._context_length} tokens, but {prompt + completion} were asked "
                f"for: {prompt} of the prompt and {completion} to be made; shorten the prompt or lower max_tokens"
            )

    async def _deltas_of(self, row: Row, *, first: bool = False) -> AsyncGenerator[TokenDelta, None]:
        try:
            self._worker.submit(row, first=first)
            while True:
                delta = await row.deltas.get()
                if isinstance(delta, GenerationFailed):
                    raise delta
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            row.cancelled = True

    def _hand_over(self, told: Sequence[Told]) -> None:
        """One wake-up of the event loop for all rows of a step."""
        assert self._loop is not None
        if told and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_put_all, told)


def _put_all(told: Sequence[Told]) -> None:
    for row, delta in told:
        row.deltas.put_nowait(delta)


def _batch_for(model: Any, *, max_rows: int, max_length: int, max_bytes: int) -> Batch:
    slotted = slotted_batch(model, max_rows=max_rows, max_length=max_length, max_bytes=max_bytes)
    return slotted or PaddedBatch(model, max_rows=max_rows, max_length=max_length)


def _step_tokens_for(model: Any) -> int:
    if model.device.type == "cuda":
        return _CUDA_STEP_TOKENS
    fewest, most = _CPU_STEP_TOKENS
    return int(min(most, max(fewest, _CPU_STEP_FLOPS / (2 * model.num_parameters()))))


@torch.inference_mode()
def _some_logits(model: Any) -> Tensor:
    """After two tokens, (1, 2, V)."""
    logits: Tensor = model(input_ids=torch.tensor([[0, 1]], device=model.device), use_cache=False).logits
    return logits


def _end_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    generation_config = getattr(model, "generation_config", None)
    ends = getattr(generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return frozenset(end for end in (*ends, tokenizer.eos_token_id) if end is not None)
