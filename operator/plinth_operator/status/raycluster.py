"""RayCluster: from the manifest to facts."""

from plinth_operator.constants import UID_LABEL
from plinth_operator.facts import Manifest, RayClusterFacts
from plinth_operator.status.objects import owner_name, shared_fields
from plinth_operator.status.reading import condition, is_true, section, text, whole


def facts_from_raycluster(manifest: Manifest) -> RayClusterFacts:
    """What KubeRay says of a cluster.

    KubeRay copies a RayJob's labels to its cluster, and those of a RayService not in every version; the pod templates
    always have ours.
    """
    fields = shared_fields(manifest)
    fields["owner_uid"] = fields["owner_uid"] or text(
        manifest, "spec", "headGroupSpec", "template", "metadata", "labels", UID_LABEL
    )
    status = section(manifest, "status")
    failed = is_true(manifest, "ReplicaFailure")
    return RayClusterFacts(
        **fields,
        owner_name=owner_name(manifest, "RayJob", "RayService"),
        state=text(status, "state"),
        head_ready=is_true(manifest, "HeadPodReady"),
        provisioned=is_true(manifest, "RayClusterProvisioned"),
        ready_workers=whole(status, "readyWorkerReplicas"),
        desired_workers=whole(status, "desiredWorkerReplicas"),
        failure=text(condition(manifest, "ReplicaFailure"), "message") if failed else "",
    )
