"""An engine for ray.serve.llm that has no model, in place of vLLM's: RAYLLM_VLLM_ENGINE_CLS names it."""

from typing import Any

from fastapi import FastAPI

from fake_vllm_app import make_vllm_app


class Engine:
    """What LLMServer of Ray 2.60 asks of an engine."""

    def __init__(self, llm_config: Any) -> None:
        """Take the configuration that the replica has made of the model's files."""
        self._app = make_vllm_app(llm_config.model_id, root=llm_config.model_loading_config.model_source)

    async def start(self) -> None:
        """Be ready at once."""

    async def build_asgi_app(self) -> FastAPI:
        """The application that answers."""
        return self._app

    async def resolve_lora(self, lora: Any) -> None:
        """Load an adapter, unless its name says that it is damaged."""
        if lora.model_id == "damaged":
            raise ValueError("Failed to load lora model: it is damaged")
        self._app.state.loras[lora.model_id] = lora.local_path

    async def check_health(self) -> None:
        """Be well."""

    def routing_stats(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    async def shutdown(self) -> None:
        """End."""
