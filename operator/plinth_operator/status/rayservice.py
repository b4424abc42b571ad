"""RayService: from the manifest to facts."""

from collections.abc import Mapping
from typing import Any

from plinth_operator.constants import CLUSTER_HASH_ANNOTATION
from plinth_operator.facts import ApplicationFacts, Manifest, RayServiceFacts
from plinth_operator.status.objects import shared_fields
from plinth_operator.status.reading import condition, is_true, section, text, whole

_HEALTHY = ("RUNNING", "HEALTHY")


def facts_from_rayservice(manifest: Manifest) -> RayServiceFacts:
    """What KubeRay says of a service and of the Serve application in its one or two clusters."""
    ready = condition(manifest, "Ready")
    return RayServiceFacts(
        **shared_fields(manifest),
        cluster_hash=text(manifest, "metadata", "annotations", CLUSTER_HASH_ANNOTATION),
        generation=whole(manifest, "metadata", "generation"),
        observed_generation=whole(manifest, "status", "observedGeneration"),
        serve_config=text(manifest, "spec", "serveConfigV2"),
        ready=is_true(manifest, "Ready"),
        ready_reason=text(ready, "reason"),
        ready_message=text(ready, "message"),
        endpoints=whole(manifest, "status", "numServeEndpoints"),
        active=_application(section(manifest, "status", "activeServiceStatus")),
        pending=_application(section(manifest, "status", "pendingServiceStatus")),
    )


def _application(status: Mapping[str, Any]) -> ApplicationFacts | None:
    """The application of one cluster, None where there is no such cluster; the one that is not well, of several."""
    cluster = text(status, "rayClusterName")
    if not cluster:
        return None
    names = sorted(section(status, "applicationStatuses"))
    applications = [section(status, "applicationStatuses", name) for name in names]
    shown = min(applications, key=lambda app: text(app, "status") in _HEALTHY, default={})
    deployments = section(shown, "serveDeploymentStatuses")
    states = sorted(text(deployments, name, "status") for name in deployments)
    # The one that is not well, of several.
    deployment = min(states, key=lambda state: state in _HEALTHY, default="")
    return ApplicationFacts(
        cluster=cluster, status=text(shown, "status"), message=_message(shown), deployment=deployment
    )


def _message(application: Mapping[str, Any]) -> str:
    """The application's words, with those of its deployments that are not well."""
    words = [text(application, "message")]
    deployments = section(application, "serveDeploymentStatuses")
    for name in sorted(deployments):
        message = text(deployments, name, "message")
        if message and text(deployments, name, "status") not in _HEALTHY and message not in words[0]:
            words.append(f"{name}: {message}")
    return "; ".join(word for word in words if word)
