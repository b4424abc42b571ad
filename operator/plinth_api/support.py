"""Which accepted fields do not work yet, and which have no meaning outside a cluster.

The API is accepted whole from the first day; a field whose behaviour is still to come is refused with its path, never
ignored. `tests/unit/plinth_api/test_every_field.py` proves that each field is used, refused, or listed here.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from plinth_api.errors import Problem
from plinth_api.parse import Resource

ANY: frozenset[object] = frozenset()
"""Every value of the field is refused."""

ABOVE_ONE = range(2, 65)
"""Every size but 1 is refused; the schema has no size above 64."""

_JOB_NOT_SUPPORTED: Mapping[str, Collection[object]] = {
    "spec.data.prepare": ANY,
    "spec.data.columns.audio": ANY,
    "spec.training.precision": {"fp8"},
    "spec.compute.parallelism.context": ABOVE_ONE,
}

NOT_SUPPORTED: Mapping[str, Mapping[str, Collection[object]]] = {
    "PretrainJob": {
        **_JOB_NOT_SUPPORTED,
        "spec.data.train[].format": {"webdataset"},
        "spec.data.validation.sources[].format": {"webdataset"},
        "spec.objective.contrastiveImageText": ANY,
        "spec.objective.imageTextMatching": ANY,
        "spec.objective.diffusion": ANY,
        "spec.objective.maskedAudio": ANY,
        "spec.objective.autoencoder": ANY,
        "spec.objective.maskedGraph": ANY,
        "spec.objective.maskedVideo": ANY,
        "spec.objective.sequenceModelling": ANY,
        "spec.data.columns.messages": ANY,
        "spec.data.columns.label": ANY,
        "spec.data.columns.chosen": ANY,
        "spec.data.columns.rejected": ANY,
    },
    "FineTuneJob": {
        **_JOB_NOT_SUPPORTED,
        "spec.data.train[].format": {"imageFolder", "webdataset"},
        "spec.data.validation.sources[].format": {"imageFolder", "webdataset"},
        "spec.data.columns.image": ANY,
        "spec.task.preference.kto": ANY,
        "spec.task.reward": ANY,
        "spec.task.reinforcement": ANY,
        "spec.method.adaptionPrompt": ANY,
    },
    "ModelService": {
        # Kueue takes no RayService, and no cluster that scales by itself.
        "spec.compute.queueName": ANY,
    },
}

INSTEAD: Mapping[str, str] = {
    "spec.method.adaptionPrompt": "use prefix, which trains keys and values before every layer",
}
"""What the refusal of a field adds, where there is something that does nearly the same."""

_CLUSTER_ONLY_COMPUTE = (
    "spec.compute.accelerator",
    "spec.compute.image",
    "spec.compute.imagePullSecrets",
    "spec.compute.serviceAccountName",
    "spec.compute.priorityClassName",
    "spec.compute.nodeSelector",
    "spec.compute.tolerations",
    "spec.compute.env",
    "spec.compute.volumes",
    "spec.compute.podTemplate",
    "spec.model.secretRef",
)

_CLUSTER_ONLY_JOB = (
    *_CLUSTER_ONLY_COMPUTE,
    "spec.compute.queueName",
    "spec.data.train[].secretRef",
    "spec.data.validation.sources[].secretRef",
    "spec.checkpoint.secretRef",
    "spec.tracking.secretRef",
    "spec.restart",
    "spec.activeDeadlineSeconds",
    "spec.ttlSecondsAfterFinished",
    "spec.suspend",
)

CLUSTER_ONLY: Mapping[str, Collection[str]] = {
    "PretrainJob": _CLUSTER_ONLY_JOB,
    "FineTuneJob": (*_CLUSTER_ONLY_JOB, "spec.task.distillation.teacher.secretRef"),
    "ModelService": (
        *_CLUSTER_ONLY_COMPUTE,
        "spec.compute.perReplica.memory",
        "spec.rollout.clusterChange",
        "spec.rollout.canary",
        "spec.access.apiKeySecretRef",
        "spec.access.ingress",
    ),
}
"""Fields that the operator acts on and a workload never sees; a local run names those that it passes over."""


def unsupported_problems(resource: Resource) -> list[Problem]:
    """A problem for each field of `resource` whose behaviour is still to come."""
    table = NOT_SUPPORTED[resource.kind]
    return [
        Problem(path, f"not supported yet: {path}" + (f" = {value}" if refused else "") + _hint(path))
        for path, value in _walk(_set_fields(resource))
        if (refused := table.get(_pattern(path))) is not None and (not refused or value in refused)
    ]


def _hint(path: str) -> str:
    return f"; {INSTEAD[path]}" if path in INSTEAD else ""


def cluster_only_fields(resource: Resource) -> list[str]:
    """The paths of the fields set in `resource` that only a cluster acts on."""
    return [path for path, _ in _walk(_set_fields(resource)) if _pattern(path) in CLUSTER_ONLY[resource.kind]]


def _set_fields(resource: Resource) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(resource.model_dump_json(by_alias=True, exclude_unset=True, include={"spec"}))
    return fields


def _pattern(path: str) -> str:
    return re.sub(r"\[\d+\]", "[]", path)


def _walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every path inside JSON-like `value` with what lies there; an explicit null counts as left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            if item is not None:
                inner = f"{path}.{key}" if path else key
                yield inner, item if not isinstance(item, dict | list) else None
                yield from _walk(item, inner)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(item, f"{path}[{index}]")
