"""Pod: from the manifest to facts, the state of each container among them."""

from collections.abc import Mapping
from typing import Any, Literal

from plinth_operator.constants import RAY_CLUSTER_LABEL
from plinth_operator.facts import ContainerFacts, Manifest, PodFacts
from plinth_operator.status.objects import shared_fields
from plinth_operator.status.reading import condition, entries, is_true, section, text, whole

_NODE_TYPE_LABEL = "ray.io/node-type"


def facts_from_pod(manifest: Manifest) -> PodFacts:
    """What the scheduler and the kubelet say of a pod.

    A pod without ray.io/node-type is the one of the Job that KubeRay makes to submit.
    """
    status = section(manifest, "status")
    scheduled = condition(manifest, "PodScheduled")
    waits = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    disrupted = is_true(manifest, "DisruptionTarget")
    return PodFacts(
        **shared_fields(manifest),
        role=_role(text(manifest, "metadata", "labels", _NODE_TYPE_LABEL)),
        ray_cluster=text(manifest, "metadata", "labels", RAY_CLUSTER_LABEL),
        phase=text(status, "phase"),
        reason=text(status, "reason"),
        message=text(status, "message"),
        node=text(manifest, "spec", "nodeName"),
        ready=is_true(manifest, "Ready"),
        unschedulable=text(scheduled, "message") if waits else "",
        disruption=text(condition(manifest, "DisruptionTarget"), "reason") if disrupted else "",
        ip=text(status, "podIP"),
        containers=_containers(manifest),
    )


def _role(node_type: str) -> Literal["head", "worker", "submitter"]:
    match node_type:
        case "head":
            return "head"
        case "worker":
            return "worker"
        case _:
            return "submitter"


def _containers(manifest: Manifest) -> tuple[ContainerFacts, ...]:
    """Init containers first: what stops one of them stops the rest."""
    images = {
        text(container, "name"): text(container, "image")
        for field in ("initContainers", "containers")
        for container in entries(manifest, "spec", field)
    }
    return tuple(
        _container(status, images.get(text(status, "name"), ""))
        for field in ("initContainerStatuses", "containerStatuses")
        for status in entries(manifest, "status", field)
    )


def _container(status: Mapping[str, Any], image: str) -> ContainerFacts:
    waiting = section(status, "state", "waiting")
    ended = section(status, "state", "terminated")
    before = section(status, "lastState", "terminated")
    runs = "running" in section(status, "state")
    # A container in its back-off waits; why it waits is how its last run ended.
    shown = ended or (before if not runs else {})
    backs_off = text(waiting, "reason") in ("", "CrashLoopBackOff")
    return ContainerFacts(
        name=text(status, "name"),
        image=image or text(status, "image"),
        ready=status.get("ready") is True,
        waiting=text(waiting, "reason"),
        terminated=(text(shown, "reason") or "Error") if shown else "",
        exit_code=whole(shown, "exitCode") if shown else None,
        restarts=whole(status, "restartCount"),
        last_terminated=text(before, "reason") if runs else "",
        message=text(shown, "message") if backs_off else text(waiting, "message"),
    )
