"""One request on its way through the engine: its tokens so far, its random numbers, and the text that may be sent.

Enters: the tokens that are sampled for it, one at a time. Leaves: what the client is told. It knows no other request
and no tensor but its own penalties.
"""

import asyncio
import random
from typing import Any

from plinth_workloads.serving.batch import CachedRow
from plinth_workloads.serving.engine import (
    FinishReason,
    GenerationFailed,
    GenerationRequest,
    ScoredText,
    ScoredToken,
    TokenDelta,
)
from plinth_workloads.serving.lora_bank import LoraAdapter
from plinth_workloads.serving.penalties import Penalties
from plinth_workloads.serving.sampling import TokenScore
from plinth_workloads.serving.structured_output import Constraint
from plinth_workloads.serving.text_stream import IncrementalDetokenizer, StopStrings


class Row:
    """The worker owns it, but for `deltas` and `cancelled`.

    Attributes:
        token_ids: Of the prompt and of what was made so far.
        adapter: With which it is computed.
        cached: Where the keys and values of its first tokens are; None while it waits.
        deltas: What the client is told.
        constraint: What its text has to look like, if anything.
        client: Who asks for it.
        num_charged: Tokens of it that were counted for its client.
        told_at: When its client was told last, on the worker's clock; minus infinity before that.
        cancelled: Whether nobody waits for it any more.
        finished: Whether nothing more is to be made.
        spoiled: Whether its keys and values may hold what is not a number.
    """

    def __init__(
        self,
        request: GenerationRequest,
        tokenizer: Any,
        *,
        adapter: LoraAdapter | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self.token_ids = list(request.prompt_ids)
        self.adapter = adapter
        self.cached: CachedRow | None = None
        self.sampling = request.sampling
        self.deltas: asyncio.Queue[TokenDelta | GenerationFailed] = asyncio.Queue()
        self.client = request.client
        self.num_charged = 0
        self.told_at = float("-inf")
        self.cancelled = False
        self.finished = False
        self.spoiled = False
        self.penalties: Penalties | None = None
        self.constraint = constraint
        self._num_prompt_tokens = len(request.prompt_ids)
        self._random = random.Random(request.sampling.seed)
        self._tokenizer = tokenizer
        self._scores: list[ScoredToken] = []
        self._undecoded: list[int] = []
        self._untold = ""
        self._detokenizer = IncrementalDetokenizer(tokenizer, request.prompt_ids)
        self._stop = StopStrings(request.sampling.stop)

    @property
    def num_pending(self) -> int:
        """Tokens that the model has not read yet; 1 once it makes text."""
        return len(self.token_ids) - (self.cached.length if self.cached else 0)

    def next_uniform(self) -> float:
        """The random number of the next token."""
        return self._random.random()

    def accept(self, token: int, score: TokenScore | None, *, ends: bool, waits: bool = False) -> TokenDelta | None:
        """Take a sampled token; what may be sent now, or None where nothing may, or where it `waits` for more."""
        self.token_ids.append(token)
        num_made = len(self.token_ids) - self._num_prompt_tokens
        if self.penalties is not None:
            self.penalties.add(token)
        if self.constraint is not None:
            self.constraint.add(token)
        complete = ends or (self.constraint is not None and self.constraint.is_complete)
        if score is not None and not ends:
            top = tuple(ScoredText(self._text_of(other), logprob) for other, logprob in score.top)
            self._scores.append(ScoredToken(self._text_of(token), score.logprob, top))
        if not ends:
            self._undecoded.append(token)
        full = num_made >= self.sampling.max_tokens
        if waits and not complete and not full and not self.sampling.stop:
            return None
        tokens, self._undecoded = self._undecoded, []
        text, stopped = self._stop.push(self._detokenizer.push(tokens))
        self.finished = stopped or complete or full
        self._untold += text if stopped or not self.finished else text + self._stop.flush()
        if not self.finished and (waits or not self._untold):
            return None
        reason: FinishReason = "stop" if stopped or complete else "length"
        text, self._untold = self._untold, ""
        scores, self._scores = tuple(self._scores), []
        return TokenDelta(text, self._num_prompt_tokens, num_made, reason if self.finished else None, scores)

    def _text_of(self, token: int) -> str:
        text: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text
