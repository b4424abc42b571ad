"""Children of resources made by makers, as the operator would render them."""

from typing import Any

from makers import DOCUMENT_MAKERS
from plinth_api.model_service import ModelService
from plinth_api.parse import Resource, parse_resource
from plinth_api.resolve import referenced_aliases, resolve_serve_run, resolve_train_run
from plinth_operator.facts import Manifest
from plinth_operator.plan.children import job_children, service_children
from plinth_operator.plan.run_config import resolve_settings_for
from plinth_operator.settings import Settings

UID = "abcde123-0000-4000-8000-000000000000"
SETTINGS = Settings(tracking_uri="http://mlflow", workload_image="workloads:1", drain_seconds=60)


def make(kind: str, **changes: Any) -> Resource:
    """A resource as an API server has it."""
    return parse_resource(DOCUMENT_MAKERS[kind](**{"namespace": "team-a", "uid": UID, **changes}))


def children_of(resource: Resource, settings: Settings = SETTINGS, attempt: int = 1) -> dict[str, Manifest]:
    """The children by kind."""
    place = resolve_settings_for(resource, settings)
    versions = {uri: f"{uri.partition('@')[0]}/3" for uri in referenced_aliases(resource, place.registry_prefix)}
    if isinstance(resource, ModelService):
        found = service_children(resource, resolve_serve_run(resource, place, versions), settings=settings)
    else:
        run = resolve_train_run(resource, place, versions)
        found = job_children(resource, run, attempt=attempt, settings=settings)
    return {child["kind"]: child for child in found}


def cluster_of(resource: Resource, settings: Settings = SETTINGS) -> Manifest:
    """The spec of the Ray cluster."""
    children = children_of(resource, settings)
    if isinstance(resource, ModelService):
        cluster: Manifest = children["RayService"]["spec"]["rayClusterConfig"]
    else:
        cluster = children["RayJob"]["spec"]["rayClusterSpec"]
    return cluster


def head_of(resource: Resource, settings: Settings = SETTINGS) -> Manifest:
    """The pod template of the head."""
    template: Manifest = cluster_of(resource, settings)["headGroupSpec"]["template"]
    return template


def worker_of(resource: Resource, settings: Settings = SETTINGS) -> Manifest:
    """The pod template of the workers."""
    template: Manifest = cluster_of(resource, settings)["workerGroupSpecs"][0]["template"]
    return template


def ray_container(template: Manifest) -> Manifest:
    """The container that runs Ray."""
    container: Manifest = template["spec"]["containers"][0]
    return container


def submitter_of(resource: Resource, settings: Settings = SETTINGS) -> Manifest:
    """The pod template of the submitter of a job."""
    template: Manifest = children_of(resource, settings)["RayJob"]["spec"]["submitterPodTemplate"]
    return template
