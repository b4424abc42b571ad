"""Pod templates of Ray nodes and of the submitter: what runs, where, what it may do, and how it ends.

KubeRay adds `ray start`, probes and Ray's own variables to the first container; what is here is everything else. Pods
follow the restricted pod security standard with a root file system for reading only: Ray 2.60 starts and runs jobs with
/tmp, /dev/shm and a home folder alone.
"""

from typing import Any

from plinth_api.common import Resources
from plinth_api.elastic import most_workers
from plinth_api.errors import InvalidSpec, Problem
from plinth_api.model_service import ModelService
from plinth_api.parse import Job, Resource
from plinth_operator.constants import UID_LABEL
from plinth_operator.facts import Manifest
from plinth_operator.plan.environment import SHUTDOWN_SECONDS, environment, secret_sources
from plinth_operator.plan.metadata import child_labels, uid_of
from plinth_operator.plan.paths import RUN_PATH
from plinth_operator.plan.quantities import canonical_quantity
from plinth_operator.plan.run_config import run_config_name
from plinth_operator.plan.serving_engine import engine_labels, head_memory_of, image_of
from plinth_operator.plan.strategic_merge import merge_pod_template
from plinth_operator.plan.volumes import Role, pod_volumes
from plinth_operator.settings import Settings

CONTAINER = "ray"
"""Of heads and workers alike, so that a podTemplate reaches both by one name."""

_PRODUCT_LABEL = "nvidia.com/gpu.product"
_NODE_LABEL = "kubernetes.io/hostname"


def build_pod_template(resource: Resource, role: Role, *, settings: Settings, attempt: int | None = None) -> Manifest:
    """The template of a head or of a worker, with the user's podTemplate merged over it.

    Args:
        resource: What the user asks for.
        role: A head computes nothing, and keeps its own resources whatever podTemplate says.
        settings: Of the operator.
        attempt: Of a job; None for a service.

    Raises:
        InvalidSpec: podTemplate is no pod template.
    """
    run_config = None if isinstance(resource, ModelService) or attempt is None else run_config_name(resource, attempt)
    volumes = pod_volumes(resource, role, settings=settings, run_config=run_config)
    resources = _head_resources(resource, settings) if role == "head" else _worker_resources(resource)
    template = {
        "metadata": {"labels": {**child_labels(resource, attempt), **engine_labels(resource, settings)}},
        "spec": {
            **_placement(resource, role),
            **_identity(resource, role),
            "securityContext": pod_security_context(settings),
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": settings.drain_seconds + SHUTDOWN_SECONDS,
            "containers": [
                {
                    "name": CONTAINER,
                    "image": image_of(resource, settings),
                    "env": environment(resource, settings),
                    **_secrets(resource, settings),
                    "resources": resources,
                    "securityContext": {**container_security_context(), "readOnlyRootFilesystem": True},
                    "volumeMounts": volumes.mounts,
                    **_lifecycle(resource, settings),
                }
            ],
            "volumes": volumes.volumes,
        },
    }
    merged = _with_pod_template(template, resource)
    if role == "head":
        merged["spec"]["containers"][0]["resources"] = resources
    return merged


def build_submitter_template(job: Job, *, settings: Settings, attempt: int) -> Manifest:
    """The pod that submits the entry point to Ray and follows its log; KubeRay gives it its command."""
    return {
        "metadata": {"labels": child_labels(job, attempt)},
        "spec": {
            **_common_placement(job),
            **_identity(job, "worker"),
            "securityContext": pod_security_context(settings),
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "ray-job-submitter",
                    "image": job.spec.compute.image or settings.workload_image,
                    "env": [
                        {"name": "HOME", "value": "/tmp"},
                        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
                    ],
                    "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
                    "securityContext": {**container_security_context(), "readOnlyRootFilesystem": True},
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }


def scales(resource: Resource) -> bool:
    """Whether the number of a resource's pods moves: Ray's autoscaler is in its head then."""
    return isinstance(resource, ModelService) or resource.spec.compute.elastic is not None


def worker_resources(resource: Resource) -> Resources:
    """What one worker or one replica asks for."""
    if isinstance(resource, ModelService):
        return resource.spec.compute.per_replica
    return resource.spec.compute.per_worker


def pod_security_context(settings: Settings) -> dict[str, Any]:
    """What the restricted standard asks of a pod, and the group of its volumes.

    A fresh volume belongs to root: `settings.fs_group` may write to it, and the user of the image is in it. Where there
    is none, the cluster gives pods a group of its own, and refuses others.
    """
    group = {"fsGroup": settings.fs_group, "fsGroupChangePolicy": "OnRootMismatch"} if settings.fs_group > 0 else {}
    return {"runAsNonRoot": True, **group, "seccompProfile": {"type": "RuntimeDefault"}}


def container_security_context() -> dict[str, Any]:
    """What the restricted standard asks of a container."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _with_pod_template(template: Manifest, resource: Resource) -> Manifest:
    merged = merge_pod_template(template, resource.spec.compute.pod_template or {})
    if not merged.get("spec", {}).get("containers"):
        message = f"must leave spec.containers with the container {CONTAINER}, which runs Ray"
        raise InvalidSpec(Problem("spec.compute.podTemplate", message))
    # Without our labels nobody finds the pods: neither our watches nor the NetworkPolicy.
    metadata = merged.get("metadata", {})
    labels = {**metadata.get("labels", {}), **template["metadata"]["labels"]}
    return {**merged, "metadata": {**metadata, "labels": labels}}


def _placement(resource: Resource, role: Role) -> dict[str, Any]:
    placement = _common_placement(resource)
    accelerator = resource.spec.compute.accelerator
    if role == "worker" and accelerator and accelerator.product:
        placement["nodeSelector"] = {_PRODUCT_LABEL: accelerator.product, **placement.get("nodeSelector", {})}
    if not isinstance(resource, ModelService) and most_workers(resource.spec.compute) == 1:
        placement["affinity"] = _together(resource)
    return placement


def _common_placement(resource: Resource) -> dict[str, Any]:
    compute = resource.spec.compute
    placement: dict[str, Any] = {}
    if compute.priority_class_name:
        placement["priorityClassName"] = compute.priority_class_name
    if compute.node_selector:
        placement["nodeSelector"] = dict(compute.node_selector)
    if compute.tolerations:
        placement["tolerations"] = [toleration.to_wire() for toleration in compute.tolerations]
    return placement


def _together(job: Job) -> dict[str, Any]:
    """Head and worker on one node where that is possible: a ReadWriteOnce claim is attached to one at a time."""
    term = {"labelSelector": {"matchLabels": {UID_LABEL: uid_of(job)}}, "topologyKey": _NODE_LABEL}
    return {
        "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
    }


def _identity(resource: Resource, role: Role) -> dict[str, Any]:
    """Who the pod is.

    The head of what scales has Ray's autoscaler, which talks to the API server as a ServiceAccount that KubeRay makes
    for it: a user's own would get the right to delete pods. No other pod has a token.
    """
    compute = resource.spec.compute
    has_autoscaler = scales(resource) and role == "head"
    identity: dict[str, Any] = {"automountServiceAccountToken": has_autoscaler}
    if compute.image_pull_secrets:
        identity["imagePullSecrets"] = [{"name": secret.name} for secret in compute.image_pull_secrets]
    if compute.service_account_name and not has_autoscaler:
        identity["serviceAccountName"] = compute.service_account_name
    return identity


def _secrets(resource: Resource, settings: Settings) -> dict[str, Any]:
    """No empty list: the API server leaves those out, and a manifest should read back as it was written."""
    sources = secret_sources(resource, settings)
    return {"envFrom": sources} if sources else {}


def _lifecycle(resource: Resource, settings: Settings) -> dict[str, Any]:
    """SIGTERM reaches `ray start` and no training process: the hook flags the workers and waits for their save."""
    if isinstance(resource, ModelService):
        return {}
    module = ["python", "-m", "plinth_workloads.train.drain"]
    command = [*module, RUN_PATH, "--timeout-seconds", str(settings.drain_seconds)]
    return {"lifecycle": {"preStop": {"exec": {"command": command}}}}


def _head_resources(resource: Resource, settings: Settings) -> dict[str, Any]:
    cpu, memory = canonical_quantity(settings.head_cpus), canonical_quantity(head_memory_of(resource, settings))
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}}


def _worker_resources(resource: Resource) -> dict[str, Any]:
    """Memory and GPUs are reserved and bounded; CPUs are reserved only, since a bound would throttle."""
    wanted, accelerator = worker_resources(resource), resource.spec.compute.accelerator
    limits: dict[str, str] = {}
    if wanted.memory is not None:
        limits["memory"] = canonical_quantity(wanted.memory)
    if wanted.gpus:
        limits[accelerator.resource if accelerator else "nvidia.com/gpu"] = str(wanted.gpus)
    requests = {"cpu": canonical_quantity(wanted.cpus), **limits}
    return {"requests": requests, "limits": limits} if limits else {"requests": requests}
