"""The thread that runs a model: rows wait, are read in pieces, make a token with each step, and leave.

Enters: rows of requests, from any thread. Leaves: what each row may be told after a step, all at once. Apart from the
engine, which belongs to an event loop: everything private here belongs to the thread, but for the rows that wait.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
from torch import Tensor

from plinth_workloads.serving.batch import Batch, Piece
from plinth_workloads.serving.engine import GenerationFailed, TokenDelta
from plinth_workloads.serving.errands import Errands, Parts
from plinth_workloads.serving.fair_queue import FairQueue
from plinth_workloads.serving.generation_row import Row
from plinth_workloads.serving.lora_bank import LoraAdapter
from plinth_workloads.serving.pace import pause_seconds
from plinth_workloads.serving.penalties import penalties_of
from plinth_workloads.serving.sampling import TokenScore, sample_tokens, score_tokens
from plinth_workloads.serving.step_shares import has_room, shares_in_pieces, shares_whole

logger = logging.getLogger(__name__)

Told = tuple[Row, TokenDelta | GenerationFailed]
"""A row and what its client is told."""

_Result = TypeVar("_Result")


class StepWorker:
    """Rows of one model, decoded together.

    Args:
        model: In evaluation mode, on its device.
        batch: Where its rows are.
        end_ids: Tokens that end a text.
        max_step_tokens: Tokens that one step reads, of prompts and of rows that make text together.
        deliver: Is called in the thread after each step that has something to tell.

    Attributes:
        last_token_at: When a token was made last, on the monotonic clock.
    """

    def __init__(
        self,
        model: Any,
        batch: Batch,
        *,
        end_ids: frozenset[int],
        max_step_tokens: int,
        deliver: Callable[[Sequence[Told]], None],
    ) -> None:
        self._device: torch.device = model.device
        self._vocab_size: int = model.get_input_embeddings().num_embeddings
        self._batch, self._end_ids, self._max_step_tokens = batch, end_ids, max_step_tokens
        self._deliver = deliver
        self._work = threading.Condition()
        self._waiting = FairQueue[Row](lambda row: row.client)
        self._running: list[Row] = []
        self._errands = Errands()
        self._detached: list[LoraAdapter] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="torch-engine", daemon=True)
        self.last_token_at = float("-inf")

    @property
    def num_running(self) -> int:
        """Rows that are decoded."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Rows that wait for a place."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Fail what is left, and return once the thread has ended."""
        with self._work:
            self._stopping = True
            self._work.notify()
        if self._thread.ident is not None:
            self._thread.join()
        else:
            self._errands.fail_all(_stopped())

    def submit(self, row: Row, *, first: bool = False) -> None:
        """Let a row wait for its place; `first` before all others.

        Raises:
            GenerationFailed: The thread does not run.
        """
        with self._work:
            if self._stopping or self._thread.ident is None:
                raise GenerationFailed("the engine is not running")
            self._waiting.push(row, first=first)
            self._work.notify()

    def between_steps(self, parts: Parts[_Result]) -> Future[_Result]:
        """What `parts` returns, each of them done in the thread: what a step uses may change there alone.

        Raises GenerationFailed, in the future, where the thread is told to stop before.
        """
        with self._work:
            if not self._stopping:
                self._work.notify()
                return self._errands.bring(parts)
        refused: Future[_Result] = Future()
        refused.set_exception(_stopped())
        return refused

    def release(self, adapter: LoraAdapter) -> None:
        """Give the adapter's place back once no row needs it; no new row may."""
        with self._work:
            self._detached.append(adapter)
            self._work.notify()

    def _run(self) -> None:
        with torch.inference_mode():
            while self._wait_for_work():
                try:
                    self._drop_cancelled()
                    self._errands.do_part()
                    self._release_detached()
                    self._admit()
                    self._step()
                except Exception as error:
                    logger.exception("a step failed")
                    self._fail(self._running, error)
                    self._running = []
                    self._batch.clear()
        self._fail([*self._running, *self._waiting], _stopped())
        self._errands.fail_all(_stopped())

    def _wait_for_work(self) -> bool:
        with self._work:
            self._work.wait_for(
                lambda: self._stopping or self._errands or self._detached or self._waiting or self._running
            )
            return not self._stopping

    def _drop_cancelled(self) -> None:
        with self._work:
            for row in self._running:
                self._charge(row)
            self._waiting.keep(lambda row: not row.cancelled)
        self._keep_unfinished()

    def _release_detached(self) -> None:
        with self._work:
            unfinished = [*self._running, *self._waiting]
        for adapter in list(self._detached):
            if all(row.adapter is not adapter for row in unfinished):
                assert self._batch.adapters is not None
                self._batch.adapters.release(adapter)
                self._detached.remove(adapter)

    def _admit(self) -> None:
        """Let those begin whose turn it is, as far as the next step could read a part of their prompts."""
        while self._waiting and has_room([row.num_pending for row in self._running], self._max_step_tokens):
            with self._work:
                row = self._waiting.head()
            assert row is not None
            row.cached = self._batch.open(row.token_ids, row.adapter)
            if row.cached is None:
                return
            if row.penalties is None:
                row.penalties = penalties_of(
                    row.sampling, row.token_ids, vocab_size=self._vocab_size, device=self._device
                )
            self._running.append(row)
            row.num_charged = max(row.num_charged, row.cached.length)
            with self._work:
                self._waiting.remove(row)
                self._charge(row)

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
            self._waiting.push(row, first=True)

    def _charge(self, row: Row) -> None:
        """Count for its client what the model reads for a row; what it had read for another costs nothing."""
        self._waiting.charge(row.client, len(row.token_ids) - row.num_charged)
        row.num_charged = len(row.token_ids)

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
            if row.constraint is not None:
                row.constraint.apply_(logits_V)
        uniforms = [row.next_uniform() for row in rows]
        tokens = sample_tokens(logits_BV, [row.sampling for row in rows], uniforms=uniforms)
        scores: dict[int, TokenScore | None] = {}
        if num_top:
            of_rows = score_tokens(told_SV, [tokens[index] for index in num_top], list(num_top.values()))
            scores = dict(zip(num_top, of_rows, strict=True))
        now, pause = time.monotonic(), pause_seconds(len(rows))
        made = [
            (row, self._accept_token(row, token, scores.get(index), now=now, pause=pause))
            for index, (row, token) in enumerate(zip(rows, tokens, strict=True))
        ]
        self._deliver([(row, delta) for row, delta in made if delta is not None])
        self._keep_unfinished()

    def _accept_token(
        self, row: Row, token: int | None, score: TokenScore | None, *, now: float, pause: float
    ) -> TokenDelta | GenerationFailed | None:
        if token is None:
            row.finished = row.spoiled = True
            return GenerationFailed("the model's output is not a finite number")
        self.last_token_at = now
        try:
            delta = row.accept(token, score, ends=token in self._end_ids, waits=now < row.told_at + pause)
        except Exception as error:
            logger.exception("a token could not be decoded")
            row.finished = True
            return _failure(error)
        if delta is not None:
            row.told_at = now
        return delta

    def _keep_unfinished(self) -> None:
        ended = [row for row in self._running if row.finished or row.cancelled]
        for row in ended:
            assert row.cached is not None
            self._batch.close(row.cached, spoiled=row.spoiled)
        if ended:
            self._running = [row for row in self._running if row not in ended]

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        self._deliver([(row, _failure(error)) for row in rows])


def _next_piece(row: Row, count: int) -> Piece:
    assert row.cached is not None
    first = row.cached.length
    return Piece(row.cached, row.token_ids[first : first + count])


def _stopped() -> GenerationFailed:
    return GenerationFailed("the engine was stopped")


def _failure(error: Exception) -> GenerationFailed:
    return error if isinstance(error, GenerationFailed) else GenerationFailed(f"{type(error).__name__}: {error}")
