"""Environment of a Ray container: caches, MLflow's address, the user's variables, and Secrets by name.

Secrets are never read by the operator: the kubelet gives them to the container, and a missing one is told by the pod.
"""

from collections.abc import Iterator
from typing import Any

from plinth_api.base import SecretRef
from plinth_api.common import EnvVar
from plinth_api.model_service import ModelService
from plinth_api.objective_rules import teacher_of
from plinth_api.parse import Resource
from plinth_operator.plan.paths import CACHE_DIR
from plinth_operator.plan.serving_engine import engine_environment
from plinth_operator.settings import Settings

SHUTDOWN_SECONDS = 30
"""What a job's pod has after its preStop hook: Ray's own draining, and the end of processes."""

_RAY_DRAIN_SECONDS = 20
"""Within SHUTDOWN_SECONDS; Ray's default is 30, which is the whole of it."""

_CACHES = {
    "HOME": "home",
    "HF_HOME": "huggingface",
    "XDG_CACHE_HOME": "xdg",
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
"""Folders that libraries write to, which must not be those of a read-only image."""


def environment(resource: Resource, settings: Settings) -> list[dict[str, Any]]:
    """The variables of a Ray container; the user's win over ours."""
    is_service = isinstance(resource, ModelService)
    # A service has no preStop hook, so that Ray has the time that the hook would have had.
    drain_seconds = settings.drain_seconds if is_service else _RAY_DRAIN_SECONDS
    # KubeRay stops the program of a RayJob that is deleted, and Ray kills what has not saved after 3 s.
    stopping = {} if is_service else {"RAY_JOB_STOP_WAIT_TIME_S": str(settings.drain_seconds)}
    ours = {
        **{name: f"{CACHE_DIR}/{folder}" for name, folder in _CACHES.items()},
        **({"MLFLOW_TRACKING_URI": settings.tracking_uri} if settings.tracking_uri else {}),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain_seconds),
        **stopping,
        **engine_environment(resource, settings),
    }
    variables: dict[str, dict[str, Any]] = {name: {"name": name, "value": value} for name, value in ours.items()}
    variables |= {variable.name: _variable(variable) for variable in resource.spec.compute.env or ()}
    return list(variables.values())


def secret_sources(resource: Resource, settings: Settings) -> list[dict[str, Any]]:
    """The Secrets whose keys become variables, each named once.

    The one that only the settings name is optional: an MLflow without passwords needs none.
    """
    names = dict.fromkeys(ref.name for ref in _secret_refs(resource) if ref)
    sources: list[dict[str, Any]] = [{"secretRef": {"name": name}} for name in names]
    own = not isinstance(resource, ModelService) and resource.spec.tracking.secret_ref is not None
    if settings.tracking_secret and not own and settings.tracking_secret not in names:
        sources.append({"secretRef": {"name": settings.tracking_secret, "optional": True}})
    return sources


def _variable(variable: EnvVar) -> dict[str, Any]:
    if ref := variable.secret_key_ref:
        return {"name": variable.name, "valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}}}
    return {"name": variable.name, "value": variable.value or ""}


def _secret_refs(resource: Resource) -> Iterator[SecretRef | None]:
    yield resource.spec.model.secret_ref
    if isinstance(resource, ModelService):
        return
    teacher = teacher_of(resource)
    yield teacher.secret_ref if teacher else None
    data = resource.spec.data
    yield from (source.secret_ref for source in data.train)
    if data.validation:
        yield from (source.secret_ref for source in data.validation.sources or ())
    yield resource.spec.checkpoint.secret_ref
    yield resource.spec.tracking.secret_ref
