"""The one list of reasons: what each means, and whether a job that failed with it is started again.

docs/troubleshooting.md has an entry for each; a test holds the two, and the workloads' own reasons, together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Retry(Enum):
    """What a failed attempt means for the job: over, one of maxRestarts used, or started again without counting."""

    FINAL = "final"
    BUDGET = "budget"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class ReasonEntry:
    """One reason: how a job goes on after it, and what it means in a line."""

    retry: Retry
    meaning: str


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something is as it is: a reason of REASONS, and a sentence that says what, where and what to do."""

    reason: str
    message: str


_FINAL: Mapping[str, str] = {
    "InvalidSpec": "A field of the resource has a value that cannot work.",
    "RayJobInvalid": "KubeRay refused the RayJob that was made from the spec.",
    "RayServiceInvalid": "KubeRay refused the RayService that was made from the spec.",
    "NameConflict": "An object of the name that Plinth needs belongs to somebody else.",
    "SecretNotFound": "A Secret, or a key of it, that the pods need does not exist.",
    "ConfigMapNotFound": "A ConfigMap, or a key of it, that the pods need does not exist.",
    "VolumeNotFound": "A PersistentVolumeClaim that the resource names does not exist.",
    "ModelNotFound": "The model, version or alias does not exist.",
    "DatasetNotFound": "A data source does not exist or matches no file.",
    "AccessDenied": "Storage, the hub or the registry refused the credentials.",
    "TrackingDenied": "MLflow refuses the credentials of the resource, or there are none.",
    "InvalidData": "The data cannot be used: a column is missing, a file is damaged, or nothing is left of it.",
    "QueueNotFound": "The Kueue queue that the job names does not exist.",
    "ExceedsQuota": "The job asks for more than its queue can ever give.",
    "DeactivatedByKueue": "Kueue, or an administrator, took the job out of its queue.",
    "PodForbidden": "The API server refuses the pods: a policy, a missing service account or priority class.",
    "CudaOutOfMemory": "The GPU's memory did not suffice.",
    "LossNaN": "The loss became NaN or infinite.",
    "DeadlineExceeded": "The job took longer than activeDeadlineSeconds.",
    "GateFailed": "The model was registered, but did not reach what evaluation.gate asks for.",
    "UserCodeError": "The training program ended with an error.",
    "ModelLoadFailed": "The model was found but cannot be loaded or served.",
    "PortInUse": "Another program listens on the port of a local service.",
}

_BUDGET: Mapping[str, str] = {
    "TrackingUnavailable": "MLflow does not answer.",
    "TrackingCredentialsChanged": "MLflow no longer takes the credentials that the attempt began with.",
    "KubeRayMissing": "KubeRay is not installed in the cluster, or too old.",
    "ObjectRefused": "The API server refuses an object that Plinth makes for the resource.",
    "WaitingForQuota": "The job waits in its Kueue queue.",
    "QuotaExceeded": "The namespace's ResourceQuota does not allow what the resource needs.",
    "PodCreationFailed": "KubeRay cannot create or delete the pods.",
    "Unschedulable": "No node can take a pod.",
    "ImagePullFailed": "A node cannot pull the image of a container.",
    "ContainerCrashed": "A container ended with an error of its own.",
    "HostOutOfMemory": "A container used more memory than its limit, or its node ran out of memory.",
    "CollectiveTimeout": "The workers lost contact with each other in a collective operation.",
    "CheckpointFailed": "A checkpoint cannot be written or read.",
    "NoProgress": "No worker has moved within watchdog.noProgressSeconds.",
    "StartupTimeout": "The first step, or the first answer, did not come in time.",
    "NodeLost": "The node of a pod failed, was drained or evicted the pod.",
    "HeadLost": "The Ray head pod is gone, and the Ray job with it.",
    "RayJobDeleted": "The RayJob of the running attempt was deleted by somebody else.",
    "RayJobStopped": "The Ray job was stopped by somebody else.",
    "SubmissionFailed": "KubeRay could not hand the program to the Ray cluster, or lost sight of it.",
    "RuntimeUnhealthy": "Ray Serve cannot keep the service's replicas healthy.",
}

_FREE: Mapping[str, str] = {
    "Preempted": "The pods had to make room for others of a higher priority.",
    "Suspended": "spec.suspend is true.",
    "ScaledToZero": "Nobody asks the service, so it has no replica, or its first one is being started.",
    "SpecChanged": "The spec was changed after an attempt was made from it.",
}

REASONS: Mapping[str, ReasonEntry] = {
    reason: ReasonEntry(retry, meaning)
    for retry, group in ((Retry.FINAL, _FINAL), (Retry.BUDGET, _BUDGET), (Retry.FREE, _FREE))
    for reason, meaning in group.items()
}
"""Every reason that status.reason, a condition or an attempt's outcome may have."""


def retry_of(reason: str) -> Retry:
    """How a job goes on after an attempt that ended for this reason; one that is not listed costs the budget."""
    entry = REASONS.get(reason)
    return entry.retry if entry else Retry.BUDGET
