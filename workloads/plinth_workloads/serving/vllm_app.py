"""The Ray Serve application of a service that vLLM serves: a ServeRun enters as `args`, ray.serve.llm's app leaves.

Imported only where vLLM is installed. VLLM_ENVIRONMENT must be in the environment of every process before Ray is
imported: with it there is one deployment, which answers HTTP itself behind HAProxy.
"""

from typing import Any

from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

from plinth_api.run import ServeRun
from plinth_workloads.serving.vllm_config import llm_config


def build_app(args: dict[str, Any]) -> serve.Application:
    """The application for a ServeRun in wire form.

    A change of `args` starts new replicas. Scaling, and of the model its limits and the beginning of chats, may be left
    out of them and be given in Serve's config for the deployment only, as for the torch engine.
    """
    config = LLMConfig.model_validate(llm_config(ServeRun.from_wire(args)))
    return build_openai_app({"llm_configs": [config]})
