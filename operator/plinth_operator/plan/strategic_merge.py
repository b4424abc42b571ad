"""A podTemplate of a user over the one we render, as `kubectl patch --type strategic` merges them.

Objects are merged key by key, null removes a key, and lists are replaced, but for those that Kubernetes merges by a key
of their items. Directives ($patch, $retainKeys) are refused: null and the merge keys say what users need.
https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/
"""

import copy
from typing import Any

from plinth_api.errors import InvalidSpec, Problem
from plinth_operator.facts import Manifest

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
}
"""Lists that are merged, and by what: `patchMergeKey` of the fields of a pod in k8s.io/api/core/v1/types.go.

What is no list is none of these fields: a label may be called env.
"""

_ROOT = "spec.compute.podTemplate"


def merge_pod_template(template: Manifest, patch: Manifest) -> Manifest:
    """A pod template with a user's patch over it; items of merged lists keep their order, new ones come last.

    Raises:
        InvalidSpec: The patch is no pod template.
    """
    for key in patch:
        if key not in ("metadata", "spec"):
            raise InvalidSpec(Problem(f"{_ROOT}.{key}", "is no field of a pod template; it has metadata and spec"))
    return _merge_objects(template, patch, _ROOT)


def _merge_objects(base: Manifest, patch: Any, path: str) -> Manifest:
    if not isinstance(patch, dict):
        raise InvalidSpec(Problem(path, "must be an object"))
    merged = dict(base)
    for key, value in patch.items():
        inner = f"{path}.{key}"
        if key.startswith("$"):
            raise InvalidSpec(Problem(inner, "directives are not supported; null removes a field"))
        if value is None:
            merged.pop(key, None)
        elif key in MERGE_KEYS and (isinstance(value, list) or isinstance(merged.get(key), list)):
            merged[key] = _merge_lists(merged.get(key, []), value, MERGE_KEYS[key], inner)
        elif isinstance(merged.get(key), dict):
            merged[key] = _merge_objects(merged[key], value, inner)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _merge_lists(base: list[Manifest], patch: Any, merge_key: str, path: str) -> list[Manifest]:
    if not isinstance(patch, list):
        raise InvalidSpec(Problem(path, "must be a list"))
    merged = {item[merge_key]: item for item in base}
    for index, item in enumerate(patch):
        if not isinstance(item, dict) or not isinstance(item.get(merge_key), str | int):
            raise InvalidSpec(Problem(f"{path}[{index}]", f"must have {merge_key}, by which the list is merged"))
        name = item[merge_key]
        merged[name] = _merge_objects(merged.get(name, {}), item, f"{path}[{index}]")
    return list(merged.values())
