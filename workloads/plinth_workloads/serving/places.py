"""How much may be open at once, in all and of one client: places are taken and given back, or refused.

Enters: clients, and how much each brings. Leaves: an EngineOverloaded that says when to come again, by how fast places
have come free lately. A client may have three times as much as is free: alone he gets three quarters of all places, and
however many take all that they can get, some are left for whoever has none (dynamic thresholds of Choudhury and Hahne,
1998, https://doi.org/10.1109/90.664262). So those are turned away who ask for much, and not those who ask for little.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from plinth_workloads.serving.engine import EngineOverloaded

_TIMES_WHAT_IS_FREE = 3
_LAST_ENDS = 64
"""From which the speed is told."""
_LONGEST_WAIT_SECONDS = 60
"""What OpenAI's clients wait at most."""


class Places:
    """Belongs to one event loop.

    Args:
        num_places: How many there are. What comes in one piece may go beyond them by itself.
        unit: What has a place, in messages.
        clock: In seconds.
    """

    def __init__(self, num_places: int, *, unit: str = "requests", clock: Callable[[], float] = time.monotonic) -> None:
        self._num_places, self._unit, self._clock = num_places, unit, clock
        # A client who brought more in one piece is not to leave nothing to the others.
        self._most_of_one = math.ceil(num_places * _TIMES_WHAT_IS_FREE / (1 + _TIMES_WHAT_IS_FREE))
        self._taken: dict[str, int] = {}
        self._ended: deque[tuple[float, int]] = deque(maxlen=_LAST_ENDS)
        self._busy_since = 0.0

    @contextmanager
    def taken_by(self, client: str, amount: int = 1) -> Iterator[None]:
        """Places of a client until the end of the block.

        Raises:
            EngineOverloaded: He has his share already, or there are none.
        """
        own = self._taken.get(client, 0)
        free = self._num_places - sum(min(taken, self._most_of_one) for taken in self._taken.values())
        if own >= _TIMES_WHAT_IS_FREE * free:
            raise EngineOverloaded(self._refusal(own), retry_after_seconds=self._wait_seconds(max(own, amount)))
        if not self._taken:
            self._busy_since = self._clock()
            self._ended.clear()
        self._taken[client] = own + amount
        try:
            yield
        finally:
            self._taken[client] -= amount
            if not self._taken[client]:
                del self._taken[client]
            self._ended.append((self._clock(), amount))

    def _refusal(self, own: int) -> str:
        if own:
            return f"{own} {self._unit} of yours are being answered or wait already; wait for some of them"
        return f"{sum(self._taken.values())} {self._unit} are being answered or wait already; try again later"

    def _wait_seconds(self, amount: int) -> int:
        """How long so much takes at the speed of the last ends; without one, as long as all have taken so far."""
        now, since = self._clock(), self._busy_since
        if len(self._ended) == _LAST_ENDS:
            since = self._ended[0][0]
        ended = sum(amount for _, amount in self._ended) or amount
        return min(max(1, math.ceil((now - since) * amount / ended)), _LONGEST_WAIT_SECONDS)
