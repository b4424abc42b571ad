"""The version that is tried beside the one in service: loaded, given its share of the requests, and counted.

Enters: a URI and a weight, now and then, and each request for the base model. Leaves: who answers it, and for the
operator how both versions did since the weight was set.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from plinth_api.model_service import PromptTemplate
from plinth_api.run import ServeCandidate
from plinth_api.service_state import CandidateState
from plinth_workloads.serving.engine import ModelEngine
from plinth_workloads.serving.served_version import Version
from plinth_workloads.serving.version_counts import Counter, Turn

_STRIDE = 37
"""Prime to 100, so that of any 100 requests in a row the weight is met exactly; and no small period, or every other
request, which may be of another kind than the rest, would always fall to the same version."""


@dataclass
class LoadFailure:
    """Why a version is not loaded; `for_good` where only the user can mend it."""

    message: str | None = None
    for_good: bool = False


Load = Callable[[str, LoadFailure], Coroutine[Any, Any, Version | None]]
"""From a URI to a version that answers, or to a failure for good; tells of others meanwhile."""


Retire = Callable[[Coroutine[Any, Any, None]], None]


class Split:
    """Deals requests out to two versions by turns."""

    def __init__(self) -> None:
        self._number = 0

    def is_candidates(self, weight: int) -> bool:
        """Whether the next request falls to the candidate, which gets `weight` of any 100 in a row."""
        place = self._number * _STRIDE % 100
        self._number += 1
        return place < weight


class Candidate:
    """At most one version beside that in service. Belongs to one event loop."""

    def __init__(self, load: Load, retire: Retire, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take what loads a version, what sees to it that one is given back, and a clock."""
        self._load, self._retire, self._clock = load, retire, clock
        self._wanted: ServeCandidate | None = None
        self._loading: asyncio.Task[Version | None] | None = None
        self._version: Version | None = None
        self._failure = LoadFailure()
        self._split = Split()
        self._begin_counting()

    @property
    def engine(self) -> ModelEngine | None:
        """Of the version that is tried, once it is loaded."""
        return self._version.engine if self._version else None

    def want(self, candidate: ServeCandidate | None) -> None:
        """Begin to try a version, change its share, or end that; requests that it answers are finished."""
        before, self._wanted = self._wanted, candidate
        if candidate is not None and before is not None and before.uri == candidate.uri:
            if before.weight != candidate.weight:
                self._begin_counting()
            return
        self._let_go()
        if candidate is not None:
            self._failure = LoadFailure()
            self._loading = asyncio.create_task(self._loaded(candidate.uri, self._failure))

    def set_prompt(self, prompt: PromptTemplate | None) -> None:
        """Let chats with it begin so."""
        if self._version is not None:
            self._version.prompt = prompt

    def hand_over(self, uri: str) -> "tuple[asyncio.Task[Version | None], LoadFailure] | None":
        """What loads or has loaded a version that is to be in service; None where another one is tried, or none."""
        if self._wanted is None or self._wanted.uri != uri or self._failure.for_good or self._loading is None:
            return None
        loading, self._wanted, self._loading, self._version = self._loading, None, None, None
        return loading, self._failure

    def pick(self, stable: Version, turn: Turn) -> Version:
        """Who answers the next request for the base model: the version in service, or the one that is tried."""
        if self._wanted is None or self._version is None:
            return stable
        is_candidates = self._split.is_candidates(self._wanted.weight)
        turn.falls_to(self._counts[is_candidates])
        return self._version if is_candidates else stable

    def state(self) -> CandidateState | None:
        """What the operator is told; None where none is tried."""
        if self._wanted is None:
            return None
        stable, candidate = self._counts
        return CandidateState(
            uri=self._wanted.uri,
            weight=self._wanted.weight,
            loaded=self._version is not None,
            load_error=self._failure.message if self._version is None else None,
            failed=self._failure.for_good,
            seconds=self._clock() - self._since if self._version is not None else 0.0,
            stable=stable.told(),
            candidate=candidate.told(),
        )

    async def wait_loaded(self) -> None:
        """Return when loading ended, well or not."""
        if self._loading is not None:
            await asyncio.wait({self._loading})

    def _begin_counting(self) -> None:
        self._counts = Counter(), Counter()
        self._since = self._clock()

    async def _loaded(self, uri: str, failure: LoadFailure) -> Version | None:
        version = await self._load(uri, failure)
        if failure is self._failure and self._loading is asyncio.current_task():
            self._version = version
            self._begin_counting()
        return version

    def _let_go(self) -> None:
        loading, self._loading, self._version = self._loading, None, None
        if loading is not None:
            loading.cancel()
            self._retire(retired(loading))


async def retired(loading: "asyncio.Task[Version | None]") -> None:
    """Return once what was loaded is given back, if anything was."""
    await asyncio.wait({loading})
    if not loading.cancelled() and (version := loading.result()) is not None:
        await version.retire()
