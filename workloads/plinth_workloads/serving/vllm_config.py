"""What ray.serve.llm is told of a service: a ServeRun enters, an LLMConfig as JSON-like data leaves.

Pure, and apart from vllm_app.py, so that it is made and checked where neither Ray nor vLLM is installed. Names of
engine arguments are those of vLLM 0.29 (vllm/engine/arg_utils.py, vllm/entrypoints/launchers/cli_args.py); Ray refuses
others when it makes the application.
"""

from dataclasses import dataclass
from typing import Any

from plinth_api.quantity import whole_cpus
from plinth_api.run import ServeRun, ServingTask

DEPLOYMENT = "model"
"""Name of the deployment; ray.serve.llm puts the name of its class and a colon before it."""

SERVER_CLASS = "plinth_workloads.serving.vllm_server:VllmServer"

RUN = "plinth"
"""Where an LLMConfig has the ServeRun that it was made from, in wire form: Ray hands that on, and passes it over."""

MOST_LORA_RANK = 512
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, MOST_LORA_RANK)
"""What vLLM takes as max_lora_rank."""

_MOST_LORAS_AT_ONCE = 16
"""Adapters of one step: vLLM keeps room for each of them on the GPU. Others wait in the host's memory."""

_MOST_REQUESTS = 1024
"""Waiting and running; vLLM answers 503 beyond it, where its queue would have no end."""

_HEALTH_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """What only the node knows that has the model's files.

    Attributes:
        folder: With the model.
        task: What it is served for.
        pools_by_files: Whether its files say how a text becomes a vector.
        tool_parser: vLLM's name for how the model writes calls of functions; None where it is not known.
        lora_rank: The greatest of its adapters; 0 for none.
    """

    folder: str
    task: ServingTask
    pools_by_files: bool = False
    tool_parser: str | None = None
    lora_rank: int = 0


def llm_config(run: ServeRun, fetched: FetchedModel | None = None) -> dict[str, Any]:
    """The LLMConfig of a service.

    Args:
        run: The service's document.
        fetched: What its replica has found; None where the application is made, which is on another node.
    """
    return {
        "model_loading_config": {"model_id": run.name, "model_source": fetched.folder if fetched else run.model.uri},
        "engine_kwargs": {**_engine_kwargs(run), **(_kwargs_of(fetched) if fetched else {})},
        # One node: the model's files are on its disk, and a pod holds one replica.
        "placement_group_config": {"bundle_per_worker": {"GPU": 1}, "strategy": "STRICT_PACK"},
        "deployment_config": {
            "name": DEPLOYMENT,
            # Ray adds it to the first bundle, which makes a replica as large as its pod.
            "ray_actor_options": {"num_cpus": whole_cpus(run.cpus)},
            "health_check_timeout_s": _HEALTH_TIMEOUT_SECONDS,
            "user_config": run.model.to_wire(),
            **run.scaling.deployment_options(),
        },
        "server_cls": SERVER_CLASS,
        "experimental_configs": {RUN: run.to_wire()},
    }


def _engine_kwargs(run: ServeRun) -> dict[str, Any]:
    kwargs: dict[str, Any] = {
        "tensor_parallel_size": run.tensor_parallel or 1,
        "load_format": "safetensors",
        "trust_remote_code": False,
        # Services take text: a picture would be fetched from an address that a client chooses.
        "language_model_only": True,
        # Temperature and the like are what a request says, whatever the model's generation_config.json has.
        "generation_config": "vllm",
        "max_num_queued_reqs": _MOST_REQUESTS,
    }
    if run.compile is False:
        kwargs["enforce_eager"] = True
    if adapters := len(run.model.adapters):
        kwargs |= {
            "enable_lora": True,
            "max_loras": min(adapters, _MOST_LORAS_AT_ONCE),
            "max_cpu_loras": adapters,
        }
    return kwargs


def _kwargs_of(fetched: FetchedModel) -> dict[str, Any]:
    rank = next((rank for rank in _LORA_RANKS if rank >= fetched.lora_rank), MOST_LORA_RANK)
    kwargs: dict[str, Any] = {"max_lora_rank": rank} if fetched.lora_rank else {}
    if fetched.task == "generate":
        tools = {"enable_auto_tool_choice": True, "tool_call_parser": fetched.tool_parser}
        return kwargs | {"runner": "generate", **(tools if fetched.tool_parser else {})}
    # Vectors of length one, and the mean of all tokens, unless the model's files say otherwise: as the torch engine.
    pooler: dict[str, Any] = {"use_activation": True}
    if not fetched.pools_by_files:
        pooler["seq_pooling_type"] = "MEAN"
    return kwargs | {"runner": "pooling", "convert": "embed", "pooler_config": pooler}
