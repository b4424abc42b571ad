"""The light engine: torch and transformers, one worker thread, rows that join and leave between decode steps.

Requests enter from the event loop through a bounded queue; the worker prefills and decodes them together and hands the
text of each step back to the loop at once.
"""

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import torch
from torch import Tensor

from plinth_workloads.models.virtual_tokens import num_virtual_tokens
from plinth_workloads.serving.decode_batch import DecodeBatch
from plinth_workloads.serving.engine import (
    ChatMessage,
    ContextLengthExceeded,
    EngineOverloaded,
    EngineStats,
    FinishReason,
    GenerationFailed,
    GenerationRequest,
    InvalidParameter,
    InvalidPrompt,
    SamplingParameters,
    ScoredText,
    ScoredToken,
    TokenDelta,
)
from plinth_workloads.serving.penalties import Penalties, penalties_of
from plinth_workloads.serving.prompt_encoder import PromptEncoder
from plinth_workloads.serving.sampling import TokenScore, sample_tokens, score_tokens
from plinth_workloads.serving.text_stream import IncrementalDetokenizer, StopStrings

logger = logging.getLogger(__name__)

_DEFAULT_CONTEXT_LENGTH = 2048
_HEALTH_POLL_SECONDS = 0.05


class _Row:
    """A request on its way through the engine. The worker owns it, but for `deltas` and `cancelled`."""

    def __init__(self, request: GenerationRequest, tokenizer: Any) -> None:
        self.prompt_ids = request.prompt_ids
        self.sampling = request.sampling
        self.deltas: asyncio.Queue[TokenDelta | GenerationFailed] = asyncio.Queue()
        self.cancelled = False
        self.finished = False
        self.last_token = -1
        self.penalties: Penalties | None = None
        self._num_tokens = 0
        self._random = random.Random(request.sampling.seed)
        self._tokenizer = tokenizer
        self._scores: list[ScoredToken] = []
        self._detokenizer = IncrementalDetokenizer(tokenizer, request.prompt_ids)
        self._stop = StopStrings(request.sampling.stop)

    def next_uniform(self) -> float:
        """The random number of the next token."""
        return self._random.random()

    def accept(self, token: int, score: TokenScore | None, *, ends: bool) -> TokenDelta | None:
        """Take a sampled token; what may be sent now, or None where nothing may."""
        self.last_token = token
        self._num_tokens += 1
        if self.penalties is not None:
            self.penalties.add(token)
        if score is not None and not ends:
            top = tuple(ScoredText(self._text_of(other), logprob) for other, logprob in score.top)
            self._scores.append(ScoredToken(self._text_of(token), score.logprob, top))
        text, stopped = self._stop.push("" if ends else self._detokenizer.push(token))
        full = self._num_tokens >= self.sampling.max_tokens
        self.finished = stopped or ends or full
        if self.finished and not stopped:
            text += self._stop.flush()
        if not text and not self.finished:
            return None
        reason: FinishReason = "stop" if stopped or ends else "length"
        scores, self._scores = tuple(self._scores), []
        return TokenDelta(text, len(self.prompt_ids), self._num_tokens, reason if self.finished else None, scores)

    def _text_of(self, token: int) -> str:
        text: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text


class TorchEngine:
    """Continuous batching over a Hugging Face causal language model.

    Args:
        model: In evaluation mode, on its device.
        tokenizer: With a chat template, where chats are to be answered.
        max_batch_size: Rows that are decoded together.
        max_waiting: Requests that may wait for a row; more raise EngineOverloaded.
        max_prefill_tokens: Prompts are read together up to so many tokens, padding included; a longer one alone.
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
        max_prefill_tokens: int = 8192,
        context_length: int | None = None,
        health_timeout_seconds: float = 30.0,
    ) -> None:
        self._model = model
        self._encoder = PromptEncoder(tokenizer)
        self._max_batch_size = max_batch_size
        self._max_open = max_batch_size + max_waiting
        self._max_prefill_tokens = max_prefill_tokens
        self._context_length = context_length or _context_length_of(model)
        self._health_timeout_seconds = health_timeout_seconds
        self._vocab_size: int = model.get_input_embeddings().num_embeddings
        self._end_ids = _end_ids_of(model, tokenizer)

        self._open: set[_Row] = set()
        self._waiting: deque[_Row] = deque()
        self._work = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

        # The worker's own:
        self._batch = DecodeBatch(model)
        self._running: list[_Row] = []
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
        return EngineStats(running=len(self._running), waiting=len(self._waiting))

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
        async with aclosing(self._deltas_of(_Row(request, self._encoder.tokenizer))) as deltas:
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
        async for _ in self._deltas_of(_Row(request, self._encoder.tokenizer), first=True):
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

    async def _deltas_of(self, row: _Row, *, first: bool = False) -> AsyncGenerator[TokenDelta, None]:
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
                    self._prefill(self._take_waiting())
                    self._decode()
                except Exception as error:
                    logger.exception("a decode step failed")
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

    def _take_waiting(self) -> list[_Row]:
        """The next rows to read: as many as there is room for and as a prefill may hold, but at least one."""
        taken: list[_Row] = []
        longest = 0
        with self._work:
            while self._waiting and len(self._running) + len(taken) < self._max_batch_size:
                longest = max(longest, len(self._waiting[0].prompt_ids))
                if taken and longest * (len(taken) + 1) > self._max_prefill_tokens:
                    break
                taken.append(self._waiting.popleft())
        return taken

    def _prefill(self, rows: list[_Row]) -> None:
        if not rows:
            return
        try:
            logits_RV = self._batch.join([row.prompt_ids for row in rows])
        except Exception as error:
            logger.exception("reading %d prompts failed", len(rows))
            self._fail(rows, error)
            return
        for row in rows:
            row.penalties = penalties_of(
                row.sampling, row.prompt_ids, vocab_size=self._vocab_size, device=logits_RV.device
            )
        self._running += rows
        self._accept(rows, logits_RV)

    def _decode(self) -> None:
        if not self._running:
            return
        self._accept(self._running, self._batch.step([row.last_token for row in self._running]))

    def _accept(self, rows: Sequence[_Row], logits_BV: Tensor) -> None:
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
        self, row: _Row, token: int | None, score: TokenScore | None
    ) -> TokenDelta | GenerationFailed | None:
        if token is None:
            row.finished = True
            return GenerationFailed("the model's output is not a finite number")
        self._last_token_at = time.monotonic()
        try:
            return row.accept(token, score, ends=token in self._end_ids)
        except Exception as error:
            logger.exception("a token could not be decoded")
            row.finished = True
            return _failure(error)

    def _keep_unfinished(self) -> None:
        kept = [index for index, row in enumerate(self._running) if not (row.finished or row.cancelled)]
        if len(kept) < len(self._running):
            self._batch.keep(kept)
            self._running = [self._running[index] for index in kept]

    def _fail(self, rows: Sequence[_Row], error: Exception) -> None:
        self._hand_over([(row, _failure(error)) for row in rows])

    def _hand_over(self, made: Sequence[tuple[_Row, TokenDelta | GenerationFailed]]) -> None:
        """One wake-up of the event loop for all rows of a step."""
        assert self._loop is not None
        if made and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_put_all, made)


def _put_all(made: Sequence[tuple[_Row, TokenDelta | GenerationFailed]]) -> None:
    for row, delta in made:
        row.deltas.put_nowait(delta)


def _failure(error: Exception) -> GenerationFailed:
    return error if isinstance(error, GenerationFailed) else GenerationFailed(f"{type(error).__name__}: {error}")


def _context_length_of(model: Any) -> int:
    text_config = model.config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None) or _DEFAULT_CONTEXT_LENGTH
    return positions - num_virtual_tokens(model)


def _end_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    generation_config = getattr(model, "generation_config", None)
    ends = getattr(generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return frozenset(end for end in (*ends, tokenizer.eos_token_id) if end is not None)
