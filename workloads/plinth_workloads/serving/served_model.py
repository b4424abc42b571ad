"""The model version in use: loads a version beside the one in service, tries it, swaps, and lets the old one finish.

Where both do not fit, requests wait while the new one takes the place of the old one. Enters: the URI of a version, now
and then. Leaves: an engine for each request, and what can be said about the loading.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any, cast

from plinth_api.model_service import PromptTemplate
from plinth_api.run import ServeCandidate, ServeLimits
from plinth_api.service_state import AdapterState
from plinth_workloads.errors import UserError
from plinth_workloads.models.model_load import LoadStep, ModelLoad
from plinth_workloads.serving.brief_thread import in_brief_thread
from plinth_workloads.serving.candidate import Candidate, LoadFailure, retired
from plinth_workloads.serving.engine import Engine, EngineStats, GenerationFailed, ModelEngine
from plinth_workloads.serving.room import Gate, RoomFor
from plinth_workloads.serving.served_adapters import FetchAdapter, ServedAdapters
from plinth_workloads.serving.served_version import Version
from plinth_workloads.serving.version_counts import Turn

logger = logging.getLogger(__name__)

EngineFactory = Callable[[str], ModelEngine]
"""From a model's URI to an engine that was not started; blocks while it loads, and raises UserError."""

_RETRY_SECONDS = (5.0, 15.0, 60.0)
_WAITING_SHARE = 0.5
"""Of a request's time: for so long it waits while a version makes room, and has the rest to be answered."""
_LAST_SECONDS = 5.0
"""For a request that has timed out to be gone."""

_LAST_HOLDERS_SECONDS = 30.0
"""For what still holds a version that has ended, a thread that is about to end or an adapter on its way, to let go."""


def _no_adapters(uri: str, model_uri: str) -> Path:
    raise UserError("ModelLoadFailed", f"{uri}: this service has no way to adapters")


class ModelNotReady(Exception):
    """No model is loaded; the message says why.

    Attributes:
        failed: Whether waiting is in vain.
    """

    def __init__(self, message: str, *, failed: bool) -> None:
        super().__init__(message)
        self.failed = failed


class ServedModel:
    """The version in service and the one that is to follow it. Belongs to one event loop.

    Where a version comes or has gone, `tidy` is called to give back the memory of what nobody holds.

    Attributes:
        replica_id: Tells this one from all others.
        target_uri: The version that is wanted.
        candidate: The version that is tried beside the one in service.
        adapters: Those that are wanted beside the model.
        limits: What a request may ask for, whichever version answers; may be set at any time.
        load: How far the loading is.
    """

    def __init__(
        self,
        make_engine: EngineFactory,
        *,
        fetch_adapter: FetchAdapter = _no_adapters,
        room_for: RoomFor | None = None,
        tidy: Callable[[], None] = lambda: None,
        retry_seconds: tuple[float, ...] = _RETRY_SECONDS,
        load: ModelLoad | None = None,
    ) -> None:
        self._make_engine, self._room_for, self._tidy = make_engine, room_for, tidy
        self.replica_id = uuid.uuid4().hex[:12]
        self.candidate = Candidate(self._tried, self._retire)
        self._gate = Gate()
        self._made_room: str | None = None
        self.adapters = ServedAdapters(fetch_adapter)
        self._retry_seconds = retry_seconds
        self._version: Version | None = None
        self._loading: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._one_load = asyncio.Lock()
        self._failure = LoadFailure()
        self._target_prompt: PromptTemplate | None = None
        self.target_uri = ""
        self.limits = ServeLimits()
        self.load = load or ModelLoad()

    @property
    def prompt_hash(self) -> str:
        """Which beginning of chats is in service; empty for none."""
        return self._version.prompt.digest if self._version and self._version.prompt else ""

    @property
    def load_error(self) -> str | None:
        """Why the wanted version could not be loaded; a version that was in service before stays in service."""
        return self._failure.message

    @property
    def held(self) -> str | None:
        """What requests wait for; None while they do not."""
        return self._gate.reason

    @property
    def uri(self) -> str | None:
        """The version in service."""
        return self._version.uri if self._version else None

    @property
    def engine(self) -> ModelEngine | None:
        """The engine in service, to look at; requests take a `lease`."""
        return self._version.engine if self._version else None

    def stats(self) -> EngineStats | None:
        """What all engines are busy with, of the version that is tried too; None while there is none."""
        stats = [engine.stats() for engine in (self.engine, self.candidate.engine) if engine is not None]
        return sum(stats[1:], start=stats[0]) if stats else None

    def set_target(self, uri: str, prompt: PromptTemplate | None = None) -> None:
        """Begin to load `uri`, unless that is under way or done; the version in service stays until then.

        Chats with it start with `prompt`: at once where it is in service already, else with the version.
        """
        self._target_prompt = prompt
        if self._version is not None and uri == self._version.uri:
            self._version.prompt = prompt
        self.candidate.set_prompt(prompt)
        if uri == self.target_uri and not self._failure.for_good:
            return
        if self._loading is not None:
            self._loading.cancel()
        self.target_uri, self._failure = uri, LoadFailure()
        if uri == self.uri:
            return
        handed_over = self.candidate.hand_over(uri)
        if handed_over is None:
            self._loading = asyncio.create_task(self._load(uri))
        else:
            loading, self._failure = handed_over
            self._loading = asyncio.create_task(self._take_over(uri, loading))

    def set_candidate(self, candidate: ServeCandidate | None) -> None:
        """Begin to try a version beside the one in service, give it another share, or end that."""
        self.candidate.want(candidate)

    def set_adapters(self, adapters: Mapping[str, str]) -> None:
        """Begin to attach these adapters, URIs by name, and to let go of others; the model answers meanwhile."""
        self.adapters.want(adapters)
        if self._version is not None:
            self._keep(self._converge_adapters(self._version), self._tasks)

    def adapter_states(self) -> tuple[AdapterState, ...]:
        """What is said of each adapter that is wanted."""
        return self.adapters.state(self._version.adapters if self._version else {})

    async def wait_loaded(self) -> None:
        """Return when loading ended, well or not."""
        if self._loading is not None:
            await asyncio.wait({self._loading})

    @asynccontextmanager
    async def admitted(self, turn: Turn, *, adapter: str | None = None) -> AsyncIterator[Version]:
        """The version that answers a request, as `lease` has it; waits while a version makes room for the next.

        Args:
            turn: The request, which is counted for that version.
            adapter: That it asks for; adapters are beside the version in service only.

        Raises:
            ModelNotReady: There is none yet, or it took too long.
        """
        reason = self._gate.reason
        if not await self._gate.passed(self.limits.request_timeout_seconds * _WAITING_SHARE):
            raise ModelNotReady(f"{reason}, which takes long; try again", failed=False)
        stable = self._in_service()
        with (stable if adapter is not None else self.candidate.pick(stable, turn)).leased() as version:
            yield version

    @contextmanager
    def lease(self) -> Iterator[Version]:
        """The version in service; its engine is not taken away before the end of the block.

        Raises:
            ModelNotReady: There is none yet.
        """
        with self._in_service().leased() as version:
            yield version

    async def check_health(self) -> None:
        """Return once the engine in service has answered.

        Raises:
            ModelNotReady: There is no engine.
            GenerationFailed: It does not.
        """
        with self.lease() as version:
            await version.engine.check_health()

    async def close(self) -> None:
        """Stop loading and serving."""
        if self._loading is not None:
            self._loading.cancel()
        self._gate.open()
        self.candidate.want(None)
        if self._retiring:
            await asyncio.wait(self._retiring)
        if self._version is not None:
            await self._version.engine.stop()

    def check_adapter(self, version: Version, name: str) -> None:
        """Raise where a wanted adapter is not attached to a version.

        Raises:
            ModelNotReady: With the reason.
        """
        if name not in version.adapters:
            raise ModelNotReady(f"adapter {name} is not ready: {self.adapters.why_not(name)}", failed=False)

    def _in_service(self) -> Version:
        if self._version is not None:
            return self._version
        if self.load_error is None:
            raise ModelNotReady(self.held or f"{self.target_uri} is being loaded", failed=False)
        text = f"{self.target_uri} could not be loaded: {self.load_error}"
        raise ModelNotReady(text, failed=self._failure.for_good)

    async def _load(self, uri: str) -> None:
        """Bring a version into service: a new one, or that before it where the new one fails in its place."""
        version = await self._loaded(uri, self._failure)
        if version is None and self._made_room is not None:
            before = self._made_room
            version = await self._loaded(before, LoadFailure())
            answers = "answers again" if version else "cannot be loaded any more"
            self._failure.message = f"{self._failure.message}; {before} {answers}"
        if version is None:
            self._gate.open()
        else:
            await self._bring_in(version)

    async def _take_over(self, uri: str, loading: "asyncio.Task[Version | None]") -> None:
        """Bring the version into service that was tried; where it is not to be had, load it like any other."""
        try:
            version = await asyncio.shield(loading)
        except asyncio.CancelledError:
            self._retire(retired(loading))
            raise
        if version is not None:
            await self._bring_in(version)
        else:
            self._failure = LoadFailure()
            await self._load(uri)

    async def _bring_in(self, version: Version) -> None:
        try:
            await self._converge_adapters(version)
        except asyncio.CancelledError:
            self._retire(version.retire())
            raise
        self._swap(version)

    async def _loaded(self, uri: str, failure: LoadFailure, *, tried: bool = False) -> Version | None:
        """Try until it works; what only the user can mend is tried once, as is what another version has made room for.

        Args:
            uri: The version.
            failure: Is told why it is not loaded yet, or never will be.
            tried: Whether it has to be loaded beside the version in service.
        """
        for pause_seconds in chain(self._retry_seconds, repeat(self._retry_seconds[-1])):
            try:
                async with self._one_load:
                    try:
                        self._tidy()
                        await self._make_room(uri, tried=tried)
                        version = Version(uri, await self._started_engine(uri), self._target_prompt)
                        self._tidy()
                        return version
                    finally:
                        self.load.tell(None)
            except UserError as error:
                failure.message = error.message
                failure.for_good = error.reason != "TrackingUnavailable"
            except Exception as error:
                logger.exception("loading %s failed", uri)
                failure.message = f"{type(error).__name__}: {error}"
            logger.error("model %s: %s", uri, failure.message)
            failure.for_good = failure.for_good or self._made_room not in (None, uri)
            if failure.for_good:
                return None
            await asyncio.sleep(pause_seconds)
        raise AssertionError("the pauses have no end")

    async def _tried(self, uri: str, failure: LoadFailure) -> Version | None:
        version = await self._loaded(uri, failure, tried=True)
        if version is None or self.engine is None or version.engine.task == self.engine.task:
            return version
        failure.message = f"it is made to {version.engine.task}, and {self.uri} to {self.engine.task}"
        failure.for_good = True
        self._retire(version.retire())
        return None

    async def _make_room(self, uri: str, *, tried: bool) -> None:
        """Stop the version in service where the next one does not fit beside it; requests wait from then on.

        Raises:
            UserError: It does not fit, and is only to be tried.
        """
        if self._version is None or self._room_for is None:
            return
        version = self._version
        lacking = (await asyncio.to_thread(self._room_for, uri)).lacking(uri, version.uri)
        if lacking is not None and self._retiring:
            # What was in use before is on its way out.
            await asyncio.wait(self._retiring)
            lacking = (await asyncio.to_thread(self._room_for, uri)).lacking(uri, version.uri)
        if lacking is None:
            return
        if tried:
            raise UserError("ModelLoadFailed", f"{lacking}; raise perReplica.memory, or remove rollout.canary")
        logger.warning("%s: requests wait until it has taken its place", lacking)
        self._gate.shut(f"requests wait while {uri} takes the place of {version.uri}")
        try:
            async with asyncio.timeout(self.limits.request_timeout_seconds + _LAST_SECONDS):
                await version.finished()
        except TimeoutError:
            logger.warning("requests of %s are still not answered; they are given up", version.uri)
        except asyncio.CancelledError:
            self._gate.open()
            raise
        self._version, self._made_room = None, version.uri
        await version.engine.stop()
        del version
        self._tidy()

    async def _started_engine(self, uri: str) -> ModelEngine:
        # A thread cannot be cancelled: shielded, so that the next load waits for the memory of this one.
        engine = await _finished(asyncio.create_task(in_brief_thread(self._make_engine, uri)))
        self.load.tell(LoadStep("warmingUp"))
        await engine.start()
        try:
            await engine.warm_up()
        except GenerationFailed as error:
            await engine.stop()
            raise UserError("ModelLoadFailed", f"the model does not answer: {error}") from error
        except BaseException:
            await engine.stop()
            raise
        return engine

    def _swap(self, version: Version) -> None:
        old, self._version = self._version, version
        self._made_room = None
        if version.uri == self.target_uri:
            self._failure = LoadFailure()
        self._gate.open()
        logger.info("model %s is in service", version.uri)
        if old is not None:
            self._retire(old.retire())

    def _keep(self, work: Coroutine[Any, Any, None], tasks: "set[asyncio.Task[None]]") -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _retire(self, work: Coroutine[Any, Any, None]) -> None:
        async def retire() -> None:
            try:
                await work
            finally:
                self._tidy()
                asyncio.get_running_loop().call_later(_LAST_HOLDERS_SECONDS, self._tidy)

        self._keep(retire(), self._retiring)

    async def _converge_adapters(self, version: Version) -> None:
        if version.engine.task == "generate":
            await self.adapters.converge(cast(Engine, version.engine), version.uri, version.adapters)
        else:
            self.adapters.refuse("adapters are served beside models that generate text")


async def _finished(task: asyncio.Task[ModelEngine]) -> ModelEngine:
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
