"""The RayService of a service: a cluster, and the configuration of Ray Serve with the model version in it.

What a change costs: a new version is `user_config`, which running replicas take over; scaling is the deployment's, in
place; the rest of the document is `args`, which start new replicas; a change of the cluster starts a second cluster.
"""

import copy

import yaml

from plinth_api.model_service import ModelService
from plinth_api.run import ServeRun
from plinth_operator.constants import CLUSTER_HASH_ANNOTATION
from plinth_operator.facts import Manifest
from plinth_operator.plan.access import SERVE_PORT, serve_service_name
from plinth_operator.plan.metadata import child_labels, child_metadata, child_name, content_hash, sealed
from plinth_operator.plan.raycluster import build_ray_cluster_spec
from plinth_operator.settings import Settings

APPLICATION = "plinth"

_DEPLOYMENT = "model"
"""The name in plinth_workloads.serving.app."""


def rayservice_name(service: ModelService) -> str:
    """Name of the RayService of a service."""
    return child_name(service)


def build_rayservice(service: ModelService, run: ServeRun, *, settings: Settings) -> Manifest:
    """The RayService of a service.

    Args:
        service: What the user asks for.
        run: Its document, with the model's version.
        settings: Of the operator.

    Raises:
        InvalidSpec: podTemplate is no pod template.
    """
    cluster = build_ray_cluster_spec(service, settings=settings)
    metadata = child_metadata(service, rayservice_name(service))
    metadata["annotations"][CLUSTER_HASH_ANNOTATION] = cluster_hash(cluster)
    return sealed(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": metadata,
            "spec": {
                "upgradeStrategy": {"type": "NewCluster"},
                "serveService": {
                    "metadata": {"name": serve_service_name(service.metadata.name), "labels": child_labels(service)},
                    "spec": {"ports": [{"name": "serve", "protocol": "TCP", "port": SERVE_PORT}]},
                },
                "serveConfigV2": build_serve_config(service, run),
                "rayClusterConfig": cluster,
            },
        }
    )


def build_serve_config(service: ModelService, run: ServeRun) -> str:
    """Ray Serve's configuration as YAML, which is the same text for the same content."""
    config = {
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "plinth_workloads.serving.app:build_app",
                "args": run.model_dump(mode="json", by_alias=True, exclude={"model", "scaling"}, exclude_none=True),
                "deployments": [
                    {
                        "name": _DEPLOYMENT,
                        "user_config": run.model.to_wire(),
                        **run.scaling.deployment_options(),
                        # A pod has the memory of one replica.
                        "max_replicas_per_node": 1,
                        # As for clusters: whoever has no machines to spare stops the old replicas first.
                        "max_surge_percent": 100 if service.spec.rollout.cluster_change == "Surge" else 0,
                    }
                ],
            }
        ]
    }
    return yaml.safe_dump(config, sort_keys=False)


def cluster_hash(cluster: Manifest) -> str:
    """Changes when KubeRay would start a second cluster: it passes over the size of groups and over tolerations."""
    rest = copy.deepcopy(cluster)
    for group in [rest["headGroupSpec"], *rest["workerGroupSpecs"]]:
        for field in ("replicas", "minReplicas", "maxReplicas"):
            group.pop(field, None)
        for field in ("tolerations", "schedulingGates"):
            group["template"]["spec"].pop(field, None)
    return content_hash(rest)
