"""What follows for pods from the engine of a service: image, environment, labels, the memory of a head.

Enters: a resource and the operator's settings. Leaves: what differs where vLLM serves, and what all others have.
"""

from collections.abc import Mapping

from plinth_api.engine_rules import SERVE_ENVIRONMENT, VLLM_ENVIRONMENT, engine_of
from plinth_api.model_service import ModelService
from plinth_api.parse import Resource
from plinth_operator.constants import ENGINE_LABEL
from plinth_operator.settings import Settings


def is_served_by_vllm(resource: Resource, settings: Settings) -> bool:
    """Whether it is a service whose engine is vLLM on this platform."""
    return isinstance(resource, ModelService) and engine_of(resource, has_vllm=bool(settings.vllm_image)) == "vllm"


def image_of(resource: Resource, settings: Settings) -> str:
    """The image of the Ray nodes of a resource."""
    ours = settings.vllm_image if is_served_by_vllm(resource, settings) else settings.workload_image
    return resource.spec.compute.image or ours


def engine_environment(resource: Resource, settings: Settings) -> Mapping[str, str]:
    """The variables that Ray Serve and an engine need in every process of their cluster; none for jobs."""
    if not isinstance(resource, ModelService):
        return {}
    return VLLM_ENVIRONMENT if is_served_by_vllm(resource, settings) else SERVE_ENVIRONMENT


def engine_labels(resource: Resource, settings: Settings) -> dict[str, str]:
    """The labels of pods and Services that only one engine has."""
    return {ENGINE_LABEL: "vllm"} if is_served_by_vllm(resource, settings) else {}


def head_memory_of(resource: Resource, settings: Settings) -> str:
    """What the head of a resource asks for, and is bounded by."""
    return settings.vllm_head_memory if is_served_by_vllm(resource, settings) else settings.head_memory
