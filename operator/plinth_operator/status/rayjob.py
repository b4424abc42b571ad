"""RayJob: from the manifest to facts."""

from plinth_operator.constants import ATTEMPT_LABEL, GENERATION_ANNOTATION
from plinth_operator.facts import Manifest, RayJobFacts
from plinth_operator.status.objects import shared_fields
from plinth_operator.status.reading import section, text, timestamp, whole


def facts_from_rayjob(manifest: Manifest) -> RayJobFacts:
    """What KubeRay says of a RayJob; jobDeploymentStatus is the truth, as jobStatus can stay RUNNING after the end."""
    status = section(manifest, "status")
    return RayJobFacts(
        **shared_fields(manifest),
        attempt=whole(manifest, "metadata", "labels", ATTEMPT_LABEL),
        spec_generation=whole(manifest, "metadata", "annotations", GENERATION_ANNOTATION),
        job_status=text(status, "jobStatus"),
        deployment_status=text(status, "jobDeploymentStatus"),
        reason=text(status, "reason"),
        message=text(status, "message"),
        ray_cluster=text(status, "rayClusterName"),
        started_at=timestamp(status, "startTime"),
        ended_at=timestamp(status, "endTime"),
        suspended=section(manifest, "spec").get("suspend") is True,
        program_ended=timestamp(status, "rayJobInfo", "endTime") is not None,
    )
