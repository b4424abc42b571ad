"""The model version in use: loads a version beside the one in service, tries it, swaps, and lets the old one finish.

Enters: the URI of a version, now and then. Leaves: an engine for each request, and what can be said about the loading.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import cast

from plinth_api.model_service import PromptTemplate
from plinth_api.run import ServeLimits
from plinth_api.service_state import AdapterState
from plinth_workloads.errors import UserError
from plinth_workloads.serving.brief_thread import in_brief_thread
from plinth_workloads.serving.engine import Engine, GenerationFailed, ModelEngine
from plinth_workloads.serving.served_adapters import FetchAdapter, ServedAdapters

logger = logging.getLogger(__name__)

EngineFactory = Callable[[str], ModelEngine]
"""From a model's URI to an engine that was not started; blocks while it loads, and raises UserError."""

_RETRY_SECONDS = (5.0, 15.0, 60.0)


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


@dataclass(eq=False)
class Version:
    """A model in service, what chats with it start with, and the URIs of its adapters by name."""

    uri: str
    engine: ModelEngine
    prompt: PromptTemplate | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    leases: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class ServedModel:
    """The version in service and the one that is to follow it. Belongs to one event loop.

    Attributes:
        target_uri: The version that is wanted.
        load_error: Why it could not be loaded, if so; a version that was in service before stays in service.
        adapters: Those that are wanted beside the model.
        limits: What a request may ask for, whichever version answers; may be set at any time.
    """

    def __init__(
        self,
        make_engine: EngineFactory,
        *,
        fetch_adapter: FetchAdapter = _no_adapters,
        retry_seconds: tuple[float, ...] = _RETRY_SECONDS,
    ) -> None:
        self._make_engine = make_engine
        self.adapters = ServedAdapters(fetch_adapter)
        self._retry_seconds = retry_seconds
        self._version: Version | None = None
        self._loading: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_load = asyncio.Lock()
        self._failed_for_good = False
        self._target_prompt: PromptTemplate | None = None
        self.target_uri = ""
        self.load_error: str | None = None
        self.limits = ServeLimits()

    @property
    def prompt_hash(self) -> str:
        """Which beginning of chats is in service; empty for none."""
        return self._version.prompt.digest if self._version and self._version.prompt else ""

    @property
    def uri(self) -> str | None:
        """The version in service."""
        return self._version.uri if self._version else None

    @property
    def engine(self) -> ModelEngine | None:
        """The engine in service, to look at; requests take a `lease`."""
        return self._version.engine if self._version else None

    def set_target(self, uri: str, prompt: PromptTemplate | None = None) -> None:
        """Begin to load `uri`, unless that is under way or done; the version in service stays until then.

        Chats with it start with `prompt`: at once where it is in service already, else with the version.
        """
        self._target_prompt = prompt
        if self._version is not None and uri == self._version.uri:
            self._version.prompt = prompt
        if uri == self.target_uri and not self._failed_for_good:
            return
        if self._loading is not None:
            self._loading.cancel()
        self.target_uri, self.load_error, self._failed_for_good = uri, None, False
        if uri != self.uri:
            self._loading = asyncio.create_task(self._load(uri))

    def set_adapters(self, adapters: Mapping[str, str]) -> None:
        """Begin to attach these adapters, URIs by name, and to let go of others; the model answers meanwhile."""
        self.adapters.want(adapters)
        if self._version is not None:
            self._keep(asyncio.create_task(self._converge_adapters(self._version)))

    def adapter_states(self) -> tuple[AdapterState, ...]:
        """What is said of each adapter that is wanted."""
        return self.adapters.state(self._version.adapters if self._version else {})

    async def wait_loaded(self) -> None:
        """Return when loading ended, well or not."""
        if self._loading is not None:
            await asyncio.wait({self._loading})

    @contextmanager
    def lease(self) -> Iterator[Version]:
        """The version in service; its engine is not taken away before the end of the block.

        Raises:
            ModelNotReady: There is none yet.
        """
        version = self._version
        if version is None:
            raise self._not_ready()
        version.leases += 1
        try:
            yield version
        finally:
            version.leases -= 1
            if version.leases == 0:
                version.idle.set()

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
        if self._version is not None:
            await self._version.engine.stop()

    def check_adapter(self, version: Version, name: str) -> None:
        """Raise where a wanted adapter is not attached to a version.

        Raises:
            ModelNotReady: With the reason.
        """
        if name not in version.adapters:
            raise ModelNotReady(f"adapter {name} is not ready: {self.adapters.why_not(name)}", failed=False)

    def _not_ready(self) -> ModelNotReady:
        if self.load_error is None:
            return ModelNotReady(f"{self.target_uri} is being loaded", failed=False)
        return ModelNotReady(f"{self.target_uri} could not be loaded: {self.load_error}", failed=self._failed_for_good)

    async def _load(self, uri: str) -> None:
        """Try until it works; what only the user can mend is tried once."""
        for pause_seconds in chain(self._retry_seconds, repeat(self._retry_seconds[-1])):
            try:
                async with self._one_load:
                    engine = await self._started_engine(uri)
            except UserError as error:
                self.load_error = error.message
                self._failed_for_good = error.reason != "TrackingUnavailable"
            except Exception as error:
                logger.exception("loading %s failed", uri)
                self.load_error = f"{type(error).__name__}: {error}"
            else:
                version = Version(uri, engine, self._target_prompt)
                await self._converge_adapters(version)
                self._swap(version)
                return
            logger.error("model %s: %s", uri, self.load_error)
            if self._failed_for_good:
                return
            await asyncio.sleep(pause_seconds)

    async def _started_engine(self, uri: str) -> ModelEngine:
        # A thread cannot be cancelled: shielded, so that the next load waits for the memory of this one.
        engine = await _finished(asyncio.create_task(in_brief_thread(self._make_engine, uri)))
        await engine.start()
        try:
            await engine.check_health()
        except GenerationFailed as error:
            await engine.stop()
            raise UserError("ModelLoadFailed", f"the model does not answer: {error}") from error
        except BaseException:
            await engine.stop()
            raise
        return engine

    def _swap(self, version: Version) -> None:
        old, self._version = self._version, version
        self.load_error = None
        logger.info("model %s is in service", version.uri)
        if old is not None:
            self._keep(asyncio.create_task(_retire(old)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converge_adapters(self, version: Version) -> None:
        if version.engine.task == "generate":
            await self.adapters.converge(cast(Engine, version.engine), version.uri, version.adapters)
        else:
            self.adapters.refuse("adapters are served beside models that generate text")


async def _retire(version: Version) -> None:
    while version.leases:
        version.idle.clear()
        await version.idle.wait()
    await version.engine.stop()


async def _finished(task: asyncio.Task[ModelEngine]) -> ModelEngine:
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
