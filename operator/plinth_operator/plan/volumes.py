"""What a pod of a Ray cluster mounts: claims, the run document, and folders that it may write to.

Claims are mounted where they are needed: a volume that one node can attach at a time should not tie a head to it. Only
the claims with the checkpoints and of the model cache are writable.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from plinth_api.model_service import ModelService
from plinth_api.parse import Resource
from plinth_operator.constants import VOLUME_ROOT
from plinth_operator.plan.paths import (
    API_KEYS_FOLDER,
    CACHE_DIR,
    MODEL_CACHE_DIR,
    RUN_FOLDER,
    SERVICE_WORK_DIR,
)
from plinth_operator.plan.storage import checkpoint_claim, uri_claims
from plinth_operator.settings import Settings

Role = Literal["head", "worker"]


@dataclass(frozen=True, slots=True)
class PodVolumes:
    """The `volumes` of a pod and the `volumeMounts` of its first container."""

    volumes: list[dict[str, Any]]
    mounts: list[dict[str, Any]]


def pod_volumes(resource: Resource, role: Role, *, settings: Settings, run_config: str | None) -> PodVolumes:
    """What a head or a worker mounts.

    Args:
        resource: What the user asks for.
        role: A head runs no training and no replica, so it needs no data and no model.
        settings: Of the operator.
        run_config: Name of the ConfigMap with the run document, None for a service.
    """
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "cache", "emptyDir": {}},
        # The name that KubeRay gives it.
        {"name": "shared-mem", "emptyDir": {"medium": "Memory"}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "cache", "mountPath": CACHE_DIR},
        {"name": "shared-mem", "mountPath": "/dev/shm"},
    ]
    if run_config is None:
        volumes.append({"name": "work", "emptyDir": {}})
        mounts.append({"name": "work", "mountPath": SERVICE_WORK_DIR})
    else:
        volumes.append({"name": "run", "configMap": {"name": run_config}})
        mounts.append({"name": "run", "mountPath": RUN_FOLDER, "readOnly": True})
    if role == "worker" and isinstance(resource, ModelService) and resource.spec.access.api_key_secret_ref:
        # Not as variables: keys that are added or withdrawn count without new pods. A replica says where there is none.
        secret = {"secretName": resource.spec.access.api_key_secret_ref.name, "optional": True}
        volumes.append({"name": "api-keys", "secret": secret})
        mounts.append({"name": "api-keys", "mountPath": API_KEYS_FOLDER, "readOnly": True})
    claim_mounts = [*_uri_mounts(resource, role, settings), *_volume_mounts(resource)]
    if role == "worker" and isinstance(resource, ModelService) and settings.model_cache_claim:
        claim_mounts.append((settings.model_cache_claim, {"mountPath": MODEL_CACHE_DIR}))
    names = {claim: f"claim-{i}" for i, claim in enumerate(sorted({claim for claim, _ in claim_mounts}))}
    volumes += [{"name": name, "persistentVolumeClaim": {"claimName": claim}} for claim, name in names.items()]
    mounts += [{"name": names[claim], **mount} for claim, mount in claim_mounts]
    return PodVolumes(volumes, mounts)


def _uri_mounts(resource: Resource, role: Role, settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Claims of pvc:// URIs and the default storage, each with its mount."""
    written = None if isinstance(resource, ModelService) else checkpoint_claim(resource, settings)
    read = uri_claims(resource) if role == "worker" else ()
    for claim in sorted({*read, *([written] if written else [])}):
        mount: dict[str, Any] = {"mountPath": f"{VOLUME_ROOT}/{claim}"}
        yield claim, mount if claim == written else {**mount, "readOnly": True}


def _volume_mounts(resource: Resource) -> Iterator[tuple[str, dict[str, Any]]]:
    for volume in resource.spec.compute.volumes or ():
        mount: dict[str, Any] = {"mountPath": volume.mount_path}
        yield volume.claim_name, {**mount, "readOnly": True} if volume.read_only else mount
