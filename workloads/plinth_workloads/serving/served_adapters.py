"""The adapters beside the model in service: which are wanted, which are attached, and why one is not.

Enters: names and URIs, now and then. Leaves: engines with these adapters. Apart from the served model because an
adapter comes, changes and goes without a word to the version that it is attached to, and fails alone.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from plinth_api.service_state import AdapterState
from plinth_workloads.errors import UserError
from plinth_workloads.serving.engine import Engine

logger = logging.getLogger(__name__)

FetchAdapter = Callable[[str, str], Path]
"""From an adapter's URI and that of the model in service to a PEFT folder; blocks, and raises UserError."""


class ServedAdapters:
    """The adapters that are wanted. Belongs to one event loop."""

    def __init__(self, fetch: FetchAdapter) -> None:
        self._fetch = fetch
        self._wanted: dict[str, str] = {}
        self._errors: dict[str, str] = {}
        self._one_change = asyncio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """By which requests may ask."""
        return tuple(self._wanted)

    def uri_of(self, name: str) -> str:
        """What is wanted under a name."""
        return self._wanted[name]

    def why_not(self, name: str) -> str:
        """Why a wanted adapter is not attached."""
        return self._errors.get(name, f"{self._wanted[name]} is being loaded")

    def want(self, adapters: Mapping[str, str]) -> None:
        """Take other adapters for wanted: URIs by name. `converge` attaches them."""
        self._wanted = dict(adapters)
        self._errors = {}

    async def converge(self, engine: Engine, model_uri: str, attached: dict[str, str]) -> None:
        """Attach to an engine what is wanted and detach the rest; what cannot be attached is told by `state`.

        Args:
            engine: Which has been started.
            model_uri: The version that it serves.
            attached: URIs by name that it has, and has in the end.
        """
        async with self._one_change:
            seen: Mapping[str, str] | None = None
            # Others may be wanted meanwhile, for an engine that is not in service yet and is not asked again.
            while seen is not self._wanted:
                seen = self._wanted
                for name in [name for name in attached if name not in seen]:
                    del attached[name]
                    await engine.detach_adapter(name)
                for name, uri in seen.items():
                    if attached.get(name) != uri:
                        await self._attach(engine, model_uri, name, uri, attached)

    def refuse(self, reason: str) -> None:
        """Say of all of them why they are not attached."""
        self._errors = dict.fromkeys(self._wanted, reason)

    def state(self, attached: Mapping[str, str]) -> tuple[AdapterState, ...]:
        """What the operator is told, for an engine that has these."""
        return tuple(
            AdapterState(name=name, uri=attached.get(name), target_uri=uri, load_error=self._errors.get(name))
            for name, uri in self._wanted.items()
        )

    async def _attach(self, engine: Engine, model_uri: str, name: str, uri: str, attached: dict[str, str]) -> None:
        try:
            folder = await asyncio.to_thread(self._fetch, uri, model_uri)
            await engine.attach_adapter(name, folder)
        except UserError as error:
            message = error.message
        except Exception as error:
            logger.exception("adapter %s", uri)
            message = f"{type(error).__name__}: {error}"
        else:
            attached[name] = uri
            self._errors.pop(name, None)
            logger.info("adapter %s is in service as %s", uri, name)
            return
        logger.error("adapter %s: %s", uri, message)
        if self._wanted.get(name) == uri:
            self._errors[name] = message
