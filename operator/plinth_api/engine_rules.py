"""Which engine serves a ModelService, and what vLLM cannot do of what the API lets one ask for.

Enters: a service, and whether there is an image with vLLM. Leaves: torch or vllm, or problems; never a field that is
passed over. Apart from validate.py, since the answer depends on the place where the service runs.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from plinth_api.errors import Problem
from plinth_api.model_service import ModelService, ModelServiceSpec

ServingEngine = Literal["torch", "vllm"]

SERVE_ENVIRONMENT: Mapping[str, str] = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}
"""What every process of a service's cluster has in its environment, the head's included.

Replicas answer HTTP themselves, behind HAProxy in place of Ray Serve's Python proxy, which remains for requests that
come while there is no replica; and without a second thread that each piece of an answer would pass. Read by Ray 2.60.
"""

VLLM_ENVIRONMENT: Mapping[str, str] = {
    **SERVE_ENVIRONMENT,
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
    "VLLM_USE_RAY_V2_EXECUTOR_BACKEND": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""The same for a service that vLLM serves.

The next three take Serve's second hop and more of its threads out of a request's way, and exist in Ray 2.60; then
comes vLLM's own. https://docs.ray.io/en/latest/serve/llm/index.html. The last one sends nothing home.
"""


def engine_of(service: ModelService, *, has_vllm: bool) -> ServingEngine:
    """The engine that a service is given; auto never gives one that would refuse it.

    Args:
        service: What the user asks for.
        has_vllm: Whether the place has an image with vLLM.
    """
    spec = service.spec
    if spec.engine != "auto":
        return spec.engine
    # What a task that is told from the model will be, and what a user's own image holds, only a replica knows.
    known = spec.task in ("generate", "embed") and spec.compute.image is None
    return "vllm" if has_vllm and known and not list(_vllm_problems(spec)) else "torch"


def engine_problems(service: ModelService, *, has_vllm: bool) -> list[Problem]:
    """What the engine of a service cannot do; arguments as in `engine_of`."""
    spec = service.spec
    if engine_of(service, has_vllm=has_vllm) == "torch":
        return list(_torch_problems(spec))
    problems = list(_vllm_problems(spec))
    if not has_vllm and spec.compute.image is None:
        what = "not supported yet: spec.engine = vllm where nobody has set up an image with vLLM"
        todo = "leave it out, or name such an image in spec.compute.image, or have the chart's vllmImage set"
        problems.append(Problem("spec.engine", f"{what}; {todo}"))
    return problems


def _torch_problems(spec: ModelServiceSpec) -> Iterator[Problem]:
    path, size = "spec.compute.tensorParallel", spec.compute.tensor_parallel
    if size > 1:
        yield Problem(path, f"not supported yet: {path} = {size} with engine torch; use engine vllm, or leave it out")
    if spec.compile and spec.task in ("embed", "classify"):
        what = f"not supported yet: spec.compile with spec.task = {spec.task} and engine torch"
        yield Problem("spec.compile", f"{what}; leave it out")


def _vllm_problems(spec: ModelServiceSpec) -> Iterator[Problem]:
    gpus, split = spec.compute.per_replica.gpus, spec.compute.tensor_parallel
    if not gpus:
        yield Problem("spec.compute.perReplica.gpus", "engine vllm needs GPUs; set it, or use engine torch")
    elif split != gpus:
        text = f"{split} does not fit the {gpus} GPUs of spec.compute.perReplica, which hold one model with engine vllm"
        yield Problem("spec.compute.tensorParallel", f"{text}; set it to {gpus}")
    if spec.task == "classify":
        yield Problem("spec.task", "not supported yet: spec.task = classify with engine vllm; use engine torch")
    if spec.rollout.canary is not None:
        why = "not supported yet: spec.rollout.canary with engine vllm, where a version has replicas of its own"
        yield Problem("spec.rollout.canary", f"{why}; leave it out, or use engine torch")
    if spec.scaling.min_replicas == 0:
        why = "not supported yet: spec.scaling.minReplicas = 0 with engine vllm"
        yield Problem("spec.scaling.minReplicas", f"{why}; set it to 1, or use engine torch")
