"""What reconcile needs of MLflow, asked for in the background: no reconcile ever waits for MLflow.

Requests are kept while MLflow is away, and one of them is tried again ever more slowly until it is back.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from plinth_operator.constants import UID_TAG
from plinth_operator.facts import RunFacts
from plinth_operator.mlflow import Mlflow, MlflowDenied, MlflowError, MlflowUnavailable
from plinth_operator.plan.plan import Plan, RunRequest
from plinth_operator.queue import WorkQueue
from plinth_operator.store import Key, Resource, Store

logger = logging.getLogger(__name__)

_WORKERS = 4
_PAGE = 100
_SHORTEST_POLL_SECONDS = 5.0
_LONGEST_POLL_SECONDS = 60.0
_LONGEST_FOR_A_PAGE_SECONDS = 10.0
"""One request may take long because MLflow is busy with others: that is no reason to look rarely at few jobs."""

_POLL_SHARE = 0.05
"""Where there are many jobs, polling takes at most this share of the time."""

_READ_SPACING_SECONDS = 1.0
_FIRST_BACKOFF_SECONDS = 0.5
_LAST_BACKOFF_SECONDS = 30.0
_ACTIVE = ("Starting", "Training", "Evaluating")


_Line = tuple[Key, str]
"""A resource by name and uid."""


@dataclass(slots=True)
class _Request:
    """What is wanted for one resource; wishes that come meanwhile are merged into it."""

    uid: str
    run: RunRequest | None = None
    versions: set[str] = field(default_factory=set)
    end: tuple[str, str] | None = None
    read: bool = False


class Tracking:
    """The requests, their workers and the loop that polls running jobs."""

    def __init__(
        self,
        mlflow: Mlflow,
        store: Store,
        queue: WorkQueue[Key],
        *,
        namespace: str,
        now: Callable[[], datetime],
    ) -> None:
        """Take where facts go to, and the one namespace that is served (empty for all)."""
        self._mlflow = mlflow
        self._store = store
        self._queue = queue
        self._namespace = namespace
        self._now = now
        self._requests: dict[_Line, _Request] = {}
        self._lines: asyncio.Queue[_Line] = asyncio.Queue()
        self._serving: set[_Line] = set()
        self._reads: dict[Key, float] = {}
        self._up = asyncio.Event()
        self._up.set()
        self._failures = 0
        self._trouble: type[Exception] | None = None

    def want(self, key: Key, uid: str, plan: Plan, run: RunFacts | None) -> None:
        """Ask for what a plan needs; returns at once."""
        end = (run.run_id, plan.end_run) if run and plan.end_run else None
        read = plan.want_read and time.monotonic() - self._reads.get(key, 0.0) > _READ_SPACING_SECONDS
        if plan.want_run or plan.want_versions or end or read:
            self._add(key, _Request(uid, plan.want_run, set(plan.want_versions), end, read))

    def abandon(self, key: Key, resource: Resource) -> None:
        """End the run of a resource that is gone."""
        run = resource.run
        self._reads.pop(key, None)
        if run is not None and run.status in ("", "RUNNING"):
            self._add(key, _Request(resource.uid, end=(run.run_id, "KILLED")))

    async def run(self) -> None:
        """Serve requests and poll, until cancelled."""
        await self._adopt_with_patience()
        async with asyncio.TaskGroup() as group:
            for _ in range(_WORKERS):
                group.create_task(self._work())
            group.create_task(self._poll_forever())

    def _add(self, key: Key, request: _Request) -> None:
        # By uid as well: what is wanted for a job must not be lost to another one that takes its name.
        line = (key, request.uid)
        waiting = self._requests.get(line)
        if waiting is None:
            self._requests[line] = request
            self._lines.put_nowait(line)
            return
        waiting.run = waiting.run or request.run
        waiting.versions |= request.versions
        waiting.end = request.end or waiting.end
        waiting.read = waiting.read or request.read

    async def _adopt_with_patience(self) -> None:
        while not await self._try(self._adopt):
            await asyncio.sleep(self._backoff())

    async def _adopt(self) -> None:
        """Find the runs that earlier operators created; end those whose resources are gone."""
        async for run in self._mlflow.running_runs():
            if self._namespace and run.tags.get("plinth.namespace") != self._namespace:
                continue
            key = self._store.key_of(run.tags.get(UID_TAG, ""))
            if key is None:
                logger.info("ending run %s of a resource that is gone", run.run_id)
                await self._mlflow.end_run(run.run_id, "KILLED")
                continue
            self._store.resources[key].run = replace(run, read_at=self._now())
            self._queue.add(key)

    async def _work(self) -> None:
        while True:
            line = await self._lines.get()
            await self._up.wait()
            # One after another: of two at once, both would find that the resource has no run yet.
            request = self._requests.pop(line, None) if line not in self._serving else None
            if request is None:
                continue
            self._serving.add(line)
            if not await self._try(lambda key=line[0], request=request: self._serve(key, request)):  # type: ignore[misc]
                self._add(line[0], request)
                if self._up.is_set():
                    self._up.clear()
                    asyncio.get_running_loop().call_later(self._backoff(), self._up.set)
            self._serving.discard(line)
            if line in self._requests:
                self._lines.put_nowait(line)

    async def _serve(self, key: Key, request: _Request) -> None:
        """Carry out one request; what is done is struck off, so that a retry does not do it twice."""
        resource = self._store.resources.get(key)
        if resource is not None and resource.uid != request.uid:
            resource = None
        if request.end is not None:
            run_id, status = request.end
            await self._mlflow.end_run(run_id, status)
            request.end = None
            if resource is not None and resource.run is not None and resource.run.run_id == run_id:
                resource.run = replace(resource.run, status=status)
        if resource is None:
            return
        news = False
        if request.run is not None and resource.run is None:
            wanted = request.run
            created = await self._mlflow.create_run(wanted.experiment, wanted.name, wanted.tags, key.namespace)
            if self._store.resources.get(key) is not resource:
                logger.info("ending run %s of a resource that went while it was made", created.run_id)
                self._add(key, _Request(request.uid, end=(created.run_id, "KILLED")))
                return
            resource.run = replace(created, read_at=self._now())
            news = True
        request.run = None
        for uri in sorted(request.versions):
            version = await self._mlflow.resolve_alias(uri)
            news = news or resource.versions.get(uri) != version
            resource.versions[uri] = version
            request.versions.discard(uri)
        if request.read:
            self._reads[key] = time.monotonic()
            await self._read([(key, resource)])
            news = True
        if news:
            self._queue.add(key)

    async def _poll_forever(self) -> None:
        while True:
            await self._up.wait()
            started = time.monotonic()
            active = [(key, found) for key, found in self._store.jobs() if _is_active(found)]
            if await self._try(lambda active=active: self._read_all(active)):  # type: ignore[misc]
                await asyncio.sleep(pause_seconds(time.monotonic() - started, len(active)))
            else:
                await asyncio.sleep(self._backoff())

    async def _read_all(self, active: Sequence[tuple[Key, Resource]]) -> None:
        for start in range(0, len(active), _PAGE):
            await self._read(active[start : start + _PAGE])

    async def _read(self, batch: Sequence[tuple[Key, Resource]]) -> None:
        """Read the runs of at most 100 jobs in one request."""
        runs = {}
        for key, resource in batch:
            run = resource.run or _run_in_status(resource)
            if run is not None:
                runs[run.run_id] = (key, resource, run)
        if not runs:
            return
        experiments = sorted({run.experiment_id for _, _, run in runs.values()})
        found = {run.run_id: run for run in await self._mlflow.read_runs(experiments, list(runs))}
        for run_id, (key, resource, known) in runs.items():
            # A run that somebody deleted is neither running nor ended.
            newest = found.get(run_id, RunFacts(run_id, known.experiment_id, status="DELETED"))
            resource.run = replace(newest, read_at=self._now())
            if replace(known, read_at=None) != newest:
                self._queue.add(key)

    async def _try(self, action: Callable[[], Awaitable[None]]) -> bool:
        """Whether the action went through; when MLflow goes away or comes back, everybody who waits hears of it."""
        try:
            await action()
        except MlflowUnavailable as error:
            self._tell(error, f"MLflow does not answer ({error}); it is asked again until it does")
            return False
        except MlflowDenied as error:
            self._tell(error, f"MLflow refuses the operator's credentials ({error}); an administrator has to mend them")
            return False
        except MlflowError as error:
            # A refusal is told like an outage, and tried again: somebody may put MLflow right.
            self._tell(error, f"MLflow refuses: {error}")
            return False
        self._tell(None, "")
        return True

    def _tell(self, error: Exception | None, message: str) -> None:
        self._failures = self._failures + 1 if error else 0
        self._store.tracking_error = message
        # By kind: the words of an outage may be others at each try.
        was, self._trouble = self._trouble, type(error) if error else None
        if was is not self._trouble:
            logger.warning("%s", message or "MLflow answers again")
            for key in list(self._store.resources):
                self._queue.add(key)

    def _backoff(self) -> float:
        return min(_LAST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * float(2 ** min(self._failures, 10)))


def pause_seconds(taken: float, num_jobs: int) -> float:
    """How long to wait after reading the runs of so many jobs, which took `taken` seconds."""
    longest = min(_LONGEST_POLL_SECONDS, _LONGEST_FOR_A_PAGE_SECONDS * max(1, math.ceil(num_jobs / _PAGE)))
    return min(longest, max(_SHORTEST_POLL_SECONDS, taken / _POLL_SHARE))


def _is_active(resource: Resource) -> bool:
    return resource.status_document().get("phase") in _ACTIVE


def _run_in_status(resource: Resource) -> RunFacts | None:
    tracking = resource.status_document().get("tracking") or {}
    if "runId" not in tracking:
        return None
    return RunFacts(tracking["runId"], tracking.get("experimentId", ""))
