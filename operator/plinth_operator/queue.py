"""A work queue of keys: each at most once in it, never worked on twice at the same time, retried ever more slowly.

The shape is controller-runtime's: a key that is added while it is worked on is handed out again afterwards.
"""

import asyncio
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")

_FIRST_BACKOFF_SECONDS = 0.05
_LAST_BACKOFF_SECONDS = 60.0
_FORGOTTEN_TIMERS = 32
"""So many timers that nobody waits for may lie between the others; a key may have one for weeks ahead."""


class WorkQueue(Generic[K]):
    """For one event loop; `get` and `done` bracket the work on a key."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Take the clock that waits are measured by (seconds, monotonic)."""
        self._clock = clock
        self._ready: OrderedDict[K, float] = OrderedDict()
        self._working: set[K] = set()
        self._again: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._timers: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._held: dict[K, float] = {}
        self._order = itertools.count()
        self._changed = asyncio.Event()

    def add(self, key: K) -> None:
        """Hand `key` out as soon as a worker is free, and not before the time that `retry` was told to wait."""
        wait = self._held.get(key, 0.0) - self._clock()
        if wait > 0:
            self.add_after(key, wait)
            return
        self._held.pop(key, None)
        if key in self._working:
            self._again.setdefault(key, self._clock())
        elif key not in self._ready:
            self._ready[key] = self._clock()
            self._changed.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Hand `key` out in so many seconds; of several such wishes the soonest counts."""
        due = self._clock() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._timers, (due, next(self._order), key))
            self._drop_forgotten_timers()
            self._changed.set()

    def retry(self, key: K, least_seconds: float = 0.0) -> float:
        """Hand `key` out again after a wait that doubles with each failure in a row; the wait in seconds.

        A server that asks for `least_seconds` gets them: nothing that happens meanwhile hands `key` out sooner.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        wait = min(_LAST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * float(2 ** min(failures, 20)))
        if least_seconds > 0:
            self._held[key] = self._clock() + least_seconds
            self._again.pop(key, None)
        self.add_after(key, max(wait, least_seconds))
        return max(wait, least_seconds)

    def succeeded(self, key: K) -> None:
        """Forget the failures of `key`."""
        self._failures.pop(key, None)

    def forget(self, key: K) -> None:
        """Forget that `key` ever was, apart from work on it that runs."""
        for known in (self._ready, self._again, self._failures, self._due, self._held):
            known.pop(key, None)
        self._drop_forgotten_timers()

    async def get(self) -> K:
        """The key that has waited longest; `done` must follow."""
        while True:
            self._hand_over_due()
            if self._ready:
                key, _ = self._ready.popitem(last=False)
                self._working.add(key)
                return key
            self._changed.clear()
            wait = self._timers[0][0] - self._clock() if self._timers else None
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """The work on `key` is over."""
        self._working.discard(key)
        if key in self._again:
            self._ready[key] = self._again.pop(key)
            self._changed.set()

    def depth(self) -> int:
        """The number of keys that wait for a worker."""
        return len(self._ready)

    def oldest_seconds(self) -> float:
        """How long the first key in line has waited."""
        return self._clock() - next(iter(self._ready.values())) if self._ready else 0.0

    def is_idle(self) -> bool:
        """Whether nothing waits for a worker and no worker works; timers may be set."""
        return not self._ready and not self._working and not self._again

    def _hand_over_due(self) -> None:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            due, _, key = heapq.heappop(self._timers)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)

    def _drop_forgotten_timers(self) -> None:
        """Keep the heap at the size of what is waited for, at a cost that a constant number of additions pays."""
        if len(self._timers) > 2 * len(self._due) + _FORGOTTEN_TIMERS:
            self._timers = [timer for timer in self._timers if self._due.get(timer[2]) == timer[0]]
            heapq.heapify(self._timers)
