"""The Ray cluster of a job or a service: a head that computes nothing, and one group of workers.

Only fields that KubeRay 1.6 knows: server-side apply refuses others.
"""

import json
from typing import Any

from plinth_api.elastic import fewest_workers, most_workers
from plinth_api.errors import InvalidSpec, Problem
from plinth_api.model_service import ModelService
from plinth_api.parse import Resource
from plinth_api.quantity import parse_quantity, whole_cpus
from plinth_operator.facts import Manifest
from plinth_operator.plan.pod import build_pod_template, container_security_context, scales, worker_resources
from plinth_operator.settings import Settings

WORKER_GROUP = "workers"

MAX_REPLICAS = 1024
"""The bound of scaling.maxReplicas. KubeRay passes no change of a group's bounds on to a running cluster
(https://github.com/ray-project/kuberay/issues/2331), so Ray Serve alone bounds the replicas."""

MAX_CLUSTER_BYTES = 1024 * 1024
"""etcd takes requests of 1.5 MiB, with the bookkeeping of field managers in them."""

_IDLE_SECONDS = 60


def build_ray_cluster_spec(resource: Resource, *, settings: Settings, attempt: int | None = None) -> Manifest:
    """The RayCluster spec inside a RayJob or a RayService.

    Args:
        resource: What the user asks for.
        settings: Of the operator.
        attempt: Of a job; None for a service.

    Raises:
        InvalidSpec: podTemplate is no pod template, or is too large.
    """
    cluster = {
        "rayVersion": settings.ray_version,
        # Written out: KubeRay takes nothing for "disabled".
        "authOptions": {"mode": "token"},
        **(_autoscaling() if scales(resource) else {}),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "template": build_pod_template(resource, "head", settings=settings, attempt=attempt),
        },
        "workerGroupSpecs": [
            {
                "groupName": WORKER_GROUP,
                **_group_size(resource),
                "rayStartParams": _worker_start_params(resource),
                "template": build_pod_template(resource, "worker", settings=settings, attempt=attempt),
            }
        ],
    }
    if len(json.dumps(cluster, ensure_ascii=False).encode()) > MAX_CLUSTER_BYTES:
        limit = MAX_CLUSTER_BYTES // 1024
        raise InvalidSpec(
            Problem(
                "spec.compute",
                f"is too large: the Ray cluster made from it, with env and podTemplate in it twice, has a limit of "
                f"{limit} KiB; put what is long into a ConfigMap, a volume or the image",
            )
        )
    return cluster


def _autoscaling() -> dict[str, Any]:
    """One replica or worker more or less is one pod more or less, within the cluster that there is."""
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            # Written out: KubeRay sets Ray's variables for v2 only then.
            "version": "v2",
            "idleTimeoutSeconds": _IDLE_SECONDS,
            "resources": {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"memory": "512Mi"}},
            "securityContext": container_security_context(),
        },
    }


def _group_size(resource: Resource) -> dict[str, int]:
    if isinstance(resource, ModelService):
        # One to begin with in any case: a service that scales to zero tries its model first.
        return {"replicas": max(1, resource.spec.scaling.min_replicas), "minReplicas": 0, "maxReplicas": MAX_REPLICAS}
    compute = resource.spec.compute
    bounds = {"minReplicas": fewest_workers(compute), "maxReplicas": most_workers(compute)}
    return {"replicas": compute.workers, **bounds}


def _worker_start_params(resource: Resource) -> dict[str, str]:
    """What a worker offers to Ray, which would take the CPUs of the whole node without a number."""
    wanted = worker_resources(resource)
    params = {"num-cpus": str(whole_cpus(parse_quantity(wanted.cpus)))}
    return {**params, "num-gpus": str(wanted.gpus)} if wanted.gpus else params
