"""A replica of ray.serve.llm: fetches the model onto its node, then starts vLLM and answers HTTP.

Enters: an LLMConfig with a ServeRun in it, and a ServeModel now and then. Leaves: vLLM behind the service's front.
Imported only where vLLM is installed.
"""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from starlette.types import ASGIApp

from plinth_api.run import ServeModel, ServeRun
from plinth_api.service_state import AdapterState
from plinth_workloads.errors import UserError, failure_record
from plinth_workloads.serving import vllm_config
from plinth_workloads.serving.api_keys import ApiKeys
from plinth_workloads.serving.served_names import ServedNames
from plinth_workloads.serving.vllm_front import VllmService, build_front
from plinth_workloads.serving.vllm_model import FetchedAdapter, fetch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _LoraOnDisk:
    """What Ray's VLLMEngine.resolve_lora reads of an adapter."""

    model_id: str
    local_path: str


class VllmServer(LLMServer):
    """One vLLM engine with one model version, for as long as the replica lives."""

    async def start(self) -> None:
        """Fetch the model, start vLLM on it, load the adapters; LLMServer's constructor, a coroutine, awaits this.

        Raises:
            RuntimeError: The model cannot be had or served; its last line is the failure's record.
        """
        run = ServeRun.from_wire(self._llm_config.experimental_configs[vllm_config.RUN])
        try:
            model, adapters = await asyncio.to_thread(fetch, run)
        except UserError as error:
            # Ray Serve keeps the text of what a replica raises, where the operator finds the record.
            raise RuntimeError(failure_record(error)) from None
        self._llm_config = LLMConfig.model_validate(vllm_config.llm_config(run, model))
        await super().start()
        states = [await self._load(adapter) for adapter in adapters]
        self._keys = ApiKeys(Path(run.api_keys_dir)) if run.api_keys_dir else None
        self._service = VllmService(
            names=ServedNames(run.name, run.model.aliases),
            uri=run.model.uri,
            task=model.task,
            check_health=self.check_health,
            adapters=tuple(states),
            limits=run.model.limits,
            prompt=run.model.prompt,
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over a ServeModel's limits, aliases and beginning of chats; another version has replicas of its own."""
        wanted = ServeModel.from_wire(user_config)
        self._service.limits, self._service.prompt = wanted.limits, wanted.prompt
        self._service.names.aliases = wanted.aliases

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Serve answers HTTP with: vLLM's application behind the service's front."""
        return build_front(await super().__serve_build_asgi_app__(), self._service, keys=self._keys)

    async def _load(self, adapter: FetchedAdapter) -> AdapterState:
        error = adapter.error
        if adapter.folder is not None:
            try:
                await cast(Any, self.engine).resolve_lora(_LoraOnDisk(adapter.name, str(adapter.folder)))
            except ValueError as refusal:
                error = str(refusal)
        if error is not None:
            logger.warning("adapter %s cannot be served: %s", adapter.name, error)
        return AdapterState(
            name=adapter.name,
            uri=None if error is not None else adapter.uri,
            target_uri=adapter.uri,
            load_error=error,
        )
