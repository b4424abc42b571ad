"""The engine of models that read: one worker thread, texts of all requests in passes of similar length.

Requests enter from the event loop through a bounded queue. Whatever has come while a pass ran is considered for the
next one, first of all what comes from the client on whom the fewest tokens were spent.

Shapes: B texts, T tokens, W numbers of a text.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from plinth_api.run import ServingTask
from plinth_workloads.serving.encoder import FloatArray, Labels
from plinth_workloads.serving.engine import (
    ContextLengthExceeded,
    EngineStats,
    GenerationFailed,
    InvalidPrompt,
)
from plinth_workloads.serving.fair_queue import TokenShares
from plinth_workloads.serving.forward_pass import next_pass
from plinth_workloads.serving.places import Places
from plinth_workloads.serving.text_models import TextModel
from plinth_workloads.serving.token_bounds import unknown_token

logger = logging.getLogger(__name__)

_PASS_TOKENS = {"cpu": 2048, "cuda": 16384}
"""A processor is busy with few tokens, and every request waits for a pass; an accelerator is not."""


class _Request:
    """Texts on their way through the engine. The worker owns it, but for `answer` and `cancelled`."""

    def __init__(self, rows: Sequence[Sequence[int]], width: int, *, client: str = "", first: bool = False) -> None:
        self.rows = rows
        self.client, self.first = client, first
        self.answer: asyncio.Future[FloatArray] = asyncio.get_running_loop().create_future()
        self.cancelled = False
        self.waiting = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        self.num_unanswered = len(rows)
        self.values_NW = np.empty((len(rows), width), np.float32)

    @property
    def lengths(self) -> list[int]:
        """Of the texts that wait, longest first."""
        return [len(self.rows[index]) for index in self.waiting]

    def take(self, places: Sequence[int]) -> list[int]:
        """The texts at these places of the waiting ones, which wait no longer."""
        taken = [self.waiting[place] for place in places]
        gone = set(places)
        self.waiting = [index for place, index in enumerate(self.waiting) if place not in gone]
        return taken


_Pass = list[tuple[_Request, int]]
"""Requests, each with the number of one of its texts."""


class EncoderEngine:
    """Dynamic batching over a model that embeds or classifies texts; see `Encoder`.

    Args:
        model: On its device.
        max_pass_tokens: Tokens that are computed together, padding included. Default: by the device.
        max_waiting_tokens: Tokens that may be open; more raise EngineOverloaded, see `Places`.
        health_timeout_seconds: How long `check_health` waits for an answer.
    """

    def __init__(
        self,
        model: TextModel,
        *,
        max_pass_tokens: int | None = None,
        max_waiting_tokens: int = 2**20,
        health_timeout_seconds: float = 30.0,
    ) -> None:
        self._model = model
        self._max_pass_tokens = max_pass_tokens or _PASS_TOKENS.get(model.device.type, _PASS_TOKENS["cuda"])
        self._places = Places(max_waiting_tokens, unit="tokens")
        self._shares = TokenShares()
        self._health_timeout_seconds = health_timeout_seconds
        self._open: list[_Request] = []
        self._running: set[_Request] = set()
        self._work = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last_pass_at = float("-inf")

    @property
    def task(self) -> ServingTask:
        """See Encoder."""
        return self._model.task

    @property
    def context_length(self) -> int:
        """Most tokens of a text, its marks included."""
        return self._model.context_length

    @property
    def width(self) -> int:
        """See Encoder."""
        return self._model.width

    @property
    def labels(self) -> Labels | None:
        """See Encoder."""
        return self._model.labels

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See Encoder."""
        return self._model.encode(texts)

    def stats(self) -> EngineStats:
        """See Encoder."""
        with self._work:
            return EngineStats(running=len(self._running), waiting=sum(bool(request.waiting) for request in self._open))

    async def start(self) -> None:
        """See Encoder."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="encoder-engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """See Encoder."""
        with self._work:
            self._stopping = True
            self._work.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def compute(self, rows: Sequence[Sequence[int]], client: str = "") -> FloatArray:
        """See Encoder."""
        self._check(rows)
        with self._places.taken_by(client, sum(map(len, rows))):
            return await self._answer(_Request(rows, self.width, client=client))

    async def check_health(self) -> None:
        """See Encoder. Where others are being answered, any pass is proof enough."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._health_timeout_seconds):
                await self._answer(_Request([self._model.probe], self.width, first=True))
        except TimeoutError as error:
            if self._last_pass_at < began:
                raise GenerationFailed(f"no answer within {self._health_timeout_seconds:.0f} s") from error

    async def warm_up(self) -> None:
        """See Encoder. Nothing is made at first use but what one text needs."""
        await self.check_health()

    def _check(self, rows: Sequence[Sequence[int]]) -> None:
        for number, row in enumerate(rows):
            if not row:
                raise InvalidPrompt(f"input {number} has no tokens")
            unknown = unknown_token(row, self._model.vocab_size)
            if unknown is not None:
                raise InvalidPrompt(f"input {number}: {unknown}")
            if len(row) > self.context_length:
                raise ContextLengthExceeded(
                    f"this model's context length is {self.context_length} tokens, and input {number} has {len(row)}; "
                    "shorten it"
                )

    async def _answer(self, request: _Request) -> FloatArray:
        try:
            with self._work:
                if self._stopping or self._thread is None:
                    raise GenerationFailed("the engine is not running")
                clients = self._clients()
                if request.client not in clients:
                    self._shares.begin(request.client, clients)
                self._open.append(request)
                self._work.notify()
            return await request.answer
        finally:
            request.cancelled = True

    def _clients(self) -> set[str]:
        """Those who wait."""
        return {request.client for request in self._open if request.waiting}

    # What follows runs in the worker's thread.

    def _run(self) -> None:
        with torch.inference_mode():
            while (chosen := self._wait_for_pass()) is not None:
                try:
                    self._finish(chosen, self._values(chosen))
                except Exception as error:
                    logger.exception("computing %d texts failed", len(chosen))
                    self._fail({request for request, _ in chosen}, f"{type(error).__name__}: {error}")
        self._fail(set(self._open), "the engine was stopped")

    def _wait_for_pass(self) -> _Pass | None:
        """The next texts to compute; None once the engine is to stop."""
        with self._work:
            last, self._running = self._running, set()
            self._work.wait_for(lambda: self._stopping or self._has_waiting())
            if self._stopping:
                return None
            # Of one client's, whoever had its turn lets the others go first.
            of_client, spent = Counter(one.client for one in self._open), self._shares.spent
            self._open.sort(key=lambda one: (not one.first, spent(one.client), of_client[one.client], one in last))
            places: dict[_Request, list[int]] = {}
            for number, place in next_pass([request.lengths for request in self._open], self._max_pass_tokens):
                places.setdefault(self._open[number], []).append(place)
            chosen = [(request, text) for request, taken in places.items() for text in request.take(taken)]
            self._running = set(places)
            clients = self._clients()
            for request, text in chosen:
                self._shares.charge(request.client, len(request.rows[text]), clients)
            return chosen

    def _has_waiting(self) -> bool:
        self._open = [request for request in self._open if not request.cancelled]
        return bool(self._open)

    def _values(self, chosen: _Pass) -> FloatArray:
        rows = [torch.tensor(request.rows[text]) for request, text in chosen]
        ids_BT = pad_sequence(rows, batch_first=True, padding_value=self._model.pad_id)
        lengths_B = torch.tensor([len(row) for row in rows])
        mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()
        values_BW = self._model(ids_BT.to(self._model.device), mask_BT.to(self._model.device))
        values: FloatArray = values_BW.float().cpu().numpy()
        return values

    def _finish(self, chosen: _Pass, values_BW: FloatArray) -> None:
        self._last_pass_at = time.monotonic()
        broken = {
            request for (request, _), values_W in zip(chosen, values_BW, strict=True) if not np.isfinite(values_W).all()
        }
        for (request, text), values_W in zip(chosen, values_BW, strict=True):
            request.values_NW[text] = values_W
            request.num_unanswered -= 1
        self._fail(broken, "the model's output is not a finite number")
        done = {request for request, _ in chosen if not request.num_unanswered} - broken
        self._close(done)
        for request in done:
            self._hand_over(request, request.values_NW)

    def _fail(self, requests: set[_Request], why: str) -> None:
        self._close(requests)
        for request in requests:
            self._hand_over(request, GenerationFailed(why))

    def _close(self, requests: set[_Request]) -> None:
        with self._work:
            self._open = [request for request in self._open if request not in requests]

    def _hand_over(self, request: _Request, result: FloatArray | GenerationFailed) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_settle, request.answer, result)


def _settle(answer: asyncio.Future[FloatArray], result: FloatArray | GenerationFailed) -> None:
    if answer.done():
        return
    if isinstance(result, GenerationFailed):
        answer.set_exception(result)
    else:
        answer.set_result(result)
