"""The RayService of a service: a cluster, and the configuration of Ray Serve with the model version in it.

What a change costs: a new version is `user_config`, which running replicas take over; scaling is the deployment's, in
place; the rest of the document is `args`, which start new replicas; a change of the cluster starts a second cluster.
Under vLLM model and adapters are `args` too: its replicas take over limits and the beginning of chats only.
"""

import copy
from collections.abc import Mapping
from typing import Any

import yaml

from plinth_api.engine_rules import ServingEngine
from plinth_api.model_service import ModelService
from plinth_api.run import ServeRun
from plinth_operator.constants import CLUSTER_HASH_ANNOTATION, VOLUME_ROOT
from plinth_operator.facts import Manifest
from plinth_operator.plan.access import SERVE_PORT, serve_service_name
from plinth_operator.plan.metadata import child_labels, child_metadata, child_name, content_hash, sealed
from plinth_operator.plan.raycluster import build_ray_cluster_spec
from plinth_operator.plan.serving_engine import engine_labels
from plinth_operator.settings import Settings

APPLICATION = "plinth"

_DEPLOYMENTS: Mapping[ServingEngine, str] = {"torch": "model", "vllm": "VllmServer:model"}
"""The names in plinth_workloads.serving; ray.serve.llm puts that of its server's class before its own."""

_BUILDERS: Mapping[ServingEngine, str] = {
    "torch": "plinth_workloads.serving.app:build_app",
    "vllm": "plinth_workloads.serving.vllm_app:build_app",
}


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
    labels = {**child_labels(service), **engine_labels(service, settings)}
    metadata["annotations"][CLUSTER_HASH_ANNOTATION] = cluster_hash(cluster)
    return sealed(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": metadata,
            "spec": {
                "upgradeStrategy": {"type": "NewCluster"},
                "serveService": {
                    "metadata": {"name": serve_service_name(service.metadata.name), "labels": labels},
                    "spec": {"ports": [{"name": "serve", "protocol": "TCP", "port": SERVE_PORT}]},
                },
                "serveConfigV2": build_serve_config(service, run),
                "rayClusterConfig": cluster,
            },
        }
    )


def build_serve_config(service: ModelService, run: ServeRun) -> str:
    """Ray Serve's configuration as YAML, which is the same text for the same content."""
    run = run.mounted(VOLUME_ROOT)
    config = {
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                **_application_of(run),
                "deployments": [
                    {
                        "name": _DEPLOYMENTS[run.engine],
                        "user_config": run.model.to_wire(),
                        **run.deployment_options(),
                        **_replicas_of_a_pod(run),
                        # As for clusters: whoever has no machines to spare stops the old replicas first.
                        "max_surge_percent": 100 if service.spec.rollout.cluster_change == "Surge" else 0,
                    }
                ],
            }
        ]
    }
    return yaml.safe_dump(config, sort_keys=False)


def _application_of(run: ServeRun) -> dict[str, Any]:
    """What replicas are made by, and from which arguments: a change of those starts new replicas."""
    # vLLM has one model for as long as it lives, and loads adapters when it starts.
    left_out: dict[str, Any] = {
        "model": {"prompt", "limits", "aliases"} if run.engine == "vllm" else True,
        "scaling": True,
    }
    return {
        "import_path": _BUILDERS[run.engine],
        "args": run.model_dump(mode="json", by_alias=True, exclude=left_out, exclude_none=True),
    }


def _replicas_of_a_pod(run: ServeRun) -> dict[str, int]:
    """A pod has the memory of one replica.

    Serve refuses the option beside the placement group that a replica of vLLM has, whose GPUs are all that a pod has.
    """
    return {} if run.engine == "vllm" else {"max_replicas_per_node": 1}


def cluster_hash(cluster: Manifest) -> str:
    """Changes when KubeRay would start a second cluster: it passes over the size of groups and over tolerations."""
    rest = copy.deepcopy(cluster)
    for group in [rest["headGroupSpec"], *rest["workerGroupSpecs"]]:
        for field in ("replicas", "minReplicas", "maxReplicas"):
            group.pop(field, None)
        for field in ("tolerations", "schedulingGates"):
            group["template"]["spec"].pop(field, None)
    return content_hash(rest)
