"""The light engine: torch and transformers, one worker thread, rows that join and leave between steps.

Requests enter from the event loop through a bounded queue; the worker reads prompts in pieces between the tokens that
it makes for others, and hands the text of each step back to the loop at once.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import torch
from torch import Tensor

from plinth_workloads.models.virtual_tokens import num_virtual_tokens
from plinth_workloads.serving.batch import Batch, Piece
from plinth_workloads.serving.engine import (
    ChatMessage,
    ContextLengthExceeded,
    EngineOverloaded,
    EngineStats,
    GenerationFailed,
    GenerationRequest,
    InvalidParameter,
    InvalidPrompt,
    SamplingParameters,
    TokenDelta,
)
from plinth_workloads.serving.generation_row import Row
from plinth_workloads.serving.padded_batch import PaddedBatch
from plinth_workloads.serving.penalties import penalties_of
from plinth_workloads.serving.prompt_encoder import PromptEncoder
from plinth_workloads.serving.sampling import TokenScore, sample_tokens, score_tokens
from plinth_workloads.serving.slotted_batch import slotted_batch
from plinth_workloads.serving.step_shares import has_room, shares_in_pieces, shares_whole

logger = logging.getLogger(__name__)

_DEFAULT_CONTEXT_LENGTH = 2048
_HEALTH_POLL_SECONDS = 0.05


class TorchEngine:
    """Continuous batching over a Hugging Face causal language model.

    Args:
        model: In evaluation mode, on its device.
        tokenizer: With a chat template, where chats are to be answered.
        max_batch_size: Rows that are decoded together.
        max_waiting: Requests that may wait for a row; more raise EngineOverloaded.
        max_step_tokens: Tokens that one step reads, of prompts and of rows that make text together.
        max_cache_bytes: Of keys and values; one row of the context's length is held in any case.
        context_length: Default: the model's own.
        health_timeout_seconds: How long `check_health` waits for a token.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_batch_size: int = 32,
        max_waiting: int = 128,
        max_step_tokens: int = 128,
        max_cache_bytes: int = 2**31,
        context_length: int | None = None,
        health_timeout_seconds: float = 30.0,
    ) -> None:
        self._model = model
        self._encoder = PromptEncoder(tokenizer)
        self._max_open = max_batch_size + max_waiting
        self._max_step_tokens = max_step_tokens
        self._context_length = context_length or _context_length_of(model)
        self._health_timeout_seconds = health_timeout_seconds
        self._vocab_size: int = model.get_input_embeddings().num_embeddings
        self._end_ids = _end_ids_of(model, tokenizer)

        self._open: set[Row] = set()
        self._waiting: deque[Row] = deque()
        self._work = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

        # The worker's own:
        self._batch = _batch_for(
            model, max_rows=max_batch_size, max_length=self._context_length, max_bytes=max_cache_bytes
        )
        self._running: list[Row] = []
        self._last_token_at = float("-inf")

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its completion together."""
        return self._context_length

    def encode(self, text: str) -> list[int]:
        """See Engine."""
        return self._encoder.encode(text)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """See Engine."""
        return self._encoder.encode_chat(messages)

    def stats(self) -> EngineStats:
        """See Engine."""
        return EngineStats(running=len(self._running), waiting=len(self._waiting), cache=self._batch.use())

    async def start(self) -> None:
        """See Engine."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="torch-engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """See Engine."""
        with self._work:
            self._stopping = True
            self._work.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """See Engine."""
        self._check(request)
        if len(self._open) >= self._max_open:
            raise EngineOverloaded(f"{len(self._open)} requests are being answered or wait already; try again later")
        async with aclosing(self._deltas_of(Row(request, self._encoder.tokenizer))) as deltas:
            async for delta in deltas:
                yield delta

    async def check_health(self) -> None:
        """See Engine. Where others are being answered, any new token is proof enough."""
        began = time.monotonic()
        probe = asyncio.create_task(self._probe())
        try:
            while not probe.done() and self._last_token_at < began:
                if time.monotonic() - began > self._health_timeout_seconds:
                    raise GenerationFailed(f"no token within {self._health_timeout_seconds:.0f} s")
                await asyncio.wait({probe}, timeout=_HEALTH_POLL_SECONDS)
            if probe.done():
                probe.result()
        finally:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)

    async def _probe(self) -> None:
        request = GenerationRequest((self._encoder.first_id or 0,), SamplingParameters(max_tokens=1, temperature=0))
        async for _ in self._deltas_of(Row(request, self._encoder.tokenizer), first=True):
            pass

    def _check(self, request: GenerationRequest) -> None:
        biased = next((token for token, _ in request.sampling.logit_bias if not 0 <= token < self._vocab_size), None)
        if biased is not None:
            text = f"token id {biased} is outside of the model's vocabulary of {self._vocab_size}"
            raise InvalidParameter("logit_bias", f"logit_bias: {text}")
        if not request.prompt_ids:
            raise InvalidPrompt("the prompt is empty")
        unknown = next((token for token in request.prompt_ids if not 0 <= token < self._vocab_size), None)
        if unknown is not None:
            raise InvalidPrompt(f"token id {unknown} is outside of the model's vocabulary of {self._vocab_size}")
        prompt, completion = len(request.prompt_ids), request.sampling.max_tokens
        if prompt + completion > self._context_length:
            raise ContextLengthExceeded(
                f"this model's context length is {self._context_length} tokens, but {prompt + completion} were asked "
                f"for: {prompt} of the prompt and {completion} to be made; shorten the prompt or lower max_tokens"
            )

    async def _deltas_of(self, row: Row, *, first: bool = False) -> AsyncGenerator[TokenDelta, None]:
        self._open.add(row)
        try:
            with self._work:
                if self._stopping or self._thread is None:
                    raise GenerationFailed("the engine is not running")
                self._waiting.insert(0 if first else len(self._waiting), row)
                self._work.notify()
            while True:
                delta = await row.deltas.get()
                if isinstance(delta, GenerationFailed):
                    raise delta
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            row.cancelled = True
            self._open.discard(row)

    # What follows runs in the worker's thread.

    def _run(self) -> None:
        with torch.inference_mode():
            while self._wait_for_work():
                try:
                    self._drop_cancelled()
                    self._admit()
                    self._step()
                except Exception as error:
                    logger.exception("a step failed")
                    self._fail(self._running, error)
                    self._running = []
                    self._batch.clear()
        self._fail([*self._running, *self._waiting], GenerationFailed("the engine was stopped"))

    def _wait_for_work(self) -> bool:
        with self._work:
            self._work.wait_for(lambda: self._stopping or self._waiting or self._running)
            return not self._stopping

    def _drop_cancelled(self) -> None:
        with self._work:
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
        self._keep_unfinished()

    def _admit(self) -> None:
        """Let those who wait longest begin, as far as the next step could read a part of their prompts."""
        while self._waiting and has_room([row.num_pending for row in self._running], self._max_step_tokens):
            row = self._waiting[0]
            row.cached = self._batch.open(row.token_ids)
            if row.cached is None:
                return
            if row.penalties is None:
                row.penalties = penalties_of(
                    row.sampling, row.token_ids, vocab_size=self._vocab_size, device=self._model.device
                )
            self._running.append(row)
            with self._work:
                self._waiting.remove(row)

    def _step(self) -> None:
        if not self._running:
            return
        share = shares_in_pieces if self._batch.reads_in_pieces else shares_whole
        shares = share([row.num_pending for row in self._running], self._max_step_tokens)
        rows = [row for row, count in zip(self._running, shares, strict=True) if count]
        pieces = [_next_piece(row, count) for row, count in zip(self._running, shares, strict=True) if count]
        while not self._batch.make_room(pieces):
            self._put_back(self._running[-1])
            kept = [at for at, row in enumerate(rows) if row.cached is not None]
            rows, pieces = [rows[at] for at in kept], [pieces[at] for at in kept]
        try:
            logits_RV = self._batch.forward(pieces)
        except Exception as error:
            self._give_up(rows, error)
            return
        done = [at for at, row in enumerate(rows) if row.num_pending == 0]
        if done:
            self._accept([rows[at] for at in done], logits_RV[done])

    def _put_back(self, row: Row) -> None:
        """Let a row wait again, where the memory is too small for all; what it has said is read again as its prompt."""
        assert row.cached is not None
        self._batch.close(row.cached)
        row.cached = None
        self._running.remove(row)
        with self._work:
            self._waiting.appendleft(row)

    def _give_up(self, rows: Sequence[Row], error: Exception) -> None:
        """Fail those whose prompts were read, which the others can do without; else, or where all are lost, all."""
        prompts = [row for row in rows if row.num_pending > 1]
        if not prompts or not self._batch.reads_in_pieces:
            raise error
        logger.error("reading %d prompts failed", len(prompts), exc_info=error)
        self._fail(prompts, error)
        for row in prompts:
            row.finished = row.spoiled = True
        self._keep_unfinished()

    def _accept(self, rows: Sequence[Row], logits_BV: Tensor) -> None:
        """Sample a token for each row, hand on its text and let go of the rows that are done."""
        num_top = {i: row.sampling.num_logprobs for i, row in enumerate(rows) if row.sampling.num_logprobs is not None}
        # A copy: what is told is what the model said, without what the request adds to it.
        told_SV = logits_BV[list(num_top)]
        for row, logits_V in zip(rows, logits_BV, strict=True):
            if row.penalties is not None:
                row.penalties.apply_(logits_V)
        uniforms = [row.next_uniform() for row in rows]
        tokens = sample_tokens(logits_BV, [row.sampling for row in rows], uniforms=uniforms)
        scores: dict[int, TokenScore | None] = {}
        if num_top:
            of_rows = score_tokens(told_SV, [tokens[index] for index in num_top], list(num_top.values()))
            scores = dict(zip(num_top, of_rows, strict=True))
        made = [
            (row, self._accept_token(row, token, scores.get(index)))
            for index, (row, token) in enumerate(zip(rows, tokens, strict=True))
        ]
        self._hand_over([(row, delta) for row, delta in made if delta is not None])
        self._keep_unfinished()

    def _accept_token(
        self, row: Row, token: int | None, score: TokenScore | None
    ) -> TokenDelta | GenerationFailed | None:
        if token is None:
            row.finished = row.spoiled = True
            return GenerationFailed("the model's output is not a finite number")
        self._last_token_at = time.monotonic()
        try:
            return row.accept(token, score, ends=token in self._end_ids)
        except Exception as error:
            logger.exception("a token could not be decoded")
            row.finished = True
            return _failure(error)

    def _keep_unfinished(self) -> None:
        ended = [row for row in self._running if row.finished or row.cancelled]
        for row in ended:
            assert row.cached is not None
            self._batch.close(row.cached, spoiled=row.spoiled)
        if ended:
            self._running = [row for row in self._running if row not in ended]

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        self._hand_over([(row, _failure(error)) for row in rows])

    def _hand_over(self, made: Sequence[tuple[Row, TokenDelta | GenerationFailed]]) -> None:
        """One wake-up of the event loop for all rows of a step."""
        assert self._loop is not None
        if made and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_put_all, made)


def _put_all(made: Sequence[tuple[Row, TokenDelta | GenerationFailed]]) -> None:
    for row, delta in made:
        row.deltas.put_nowait(delta)


def _failure(error: Exception) -> GenerationFailed:
    return error if isinstance(error, GenerationFailed) else GenerationFailed(f"{type(error).__name__}: {error}")


def _next_piece(row: Row, count: int) -> Piece:
    assert row.cached is not None
    first = row.cached.length
    return Piece(row.cached, row.token_ids[first : first + count])


def _batch_for(model: Any, *, max_rows: int, max_length: int, max_bytes: int) -> Batch:
    slotted = slotted_batch(model, max_rows=max_rows, max_length=max_length, max_bytes=max_bytes)
    return slotted or PaddedBatch(model, max_rows=max_rows, max_length=max_length)


def _context_length_of(model: Any) -> int:
    text_config = model.config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None) or _DEFAULT_CONTEXT_LENGTH
    return positions - num_virtual_tokens(model)


def _end_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    generation_config = getattr(model, "generation_config", None)
    ends = getattr(generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return frozenset(end for end in (*ends, tokenizer.eos_token_id) if end is not None)
