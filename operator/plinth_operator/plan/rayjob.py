"""The RayJob of one attempt. It is created and never applied again: KubeRay and Kueue edit it afterwards.

How it is submitted, and why so: docs/adr/0009-how-a-rayjob-is-submitted.md.
"""

from typing import Any

from plinth_api.job import MUTABLE_FIELDS
from plinth_api.parse import Job
from plinth_api.run import TrainRun
from plinth_operator.constants import GENERATION_ANNOTATION, QUEUE_LABEL, QUEUE_PRIORITY_LABEL, SPEC_HASH_ANNOTATION
from plinth_operator.facts import Manifest
from plinth_operator.plan.metadata import child_metadata, child_name, content_hash, sealed
from plinth_operator.plan.paths import RUN_PATH
from plinth_operator.plan.pod import build_submitter_template
from plinth_operator.plan.raycluster import build_ray_cluster_spec
from plinth_operator.settings import Settings

ENTRYPOINT = f"python -m plinth_workloads.train {RUN_PATH} --launcher ray"


def rayjob_name(job: Job, attempt: int) -> str:
    """Name of the RayJob of an attempt."""
    return child_name(job, attempt)


def attempt_spec_hash(job: Job) -> str:
    """Changes when the part of the spec changes that an attempt is rendered from."""
    return content_hash({key: block for key, block in job.spec.to_wire().items() if key not in MUTABLE_FIELDS})


def build_rayjob(job: Job, run: TrainRun, *, attempt: int, settings: Settings) -> Manifest:
    """The RayJob of an attempt.

    Args:
        job: What the user asks for.
        run: Its document, which the pods read from the attempt's ConfigMap.
        attempt: Counted from 1.
        settings: Of the operator.

    Raises:
        InvalidSpec: podTemplate is no pod template.
    """
    assert run.uid == job.metadata.uid
    metadata = child_metadata(job, rayjob_name(job, attempt), attempt)
    metadata["annotations"][SPEC_HASH_ANNOTATION] = attempt_spec_hash(job)
    metadata["annotations"][GENERATION_ANNOTATION] = str(job.metadata.generation or 1)
    # A head that KubeRay made anew would know nothing of the job; the operator ends the attempt instead.
    metadata["annotations"]["ray.io/disable-provisioned-head-restart"] = "true"
    queue = _queue_labels(job, settings)
    metadata["labels"] |= queue
    return sealed(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": metadata,
            "spec": {
                "entrypoint": ENTRYPOINT,
                "submissionMode": "K8sJobMode",
                "submitterConfig": {"backoffLimit": 0},
                "submitterPodTemplate": build_submitter_template(job, settings=settings, attempt=attempt),
                "backoffLimit": 0,
                # Kueue and KubeRay's suspend both ask for it.
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": 0,
                # Kueue's webhook sets it too; without the webhook nothing may start before Kueue has seen the job.
                **({"suspend": True} if queue else {}),
                "rayClusterSpec": build_ray_cluster_spec(job, settings=settings, attempt=attempt),
            },
        }
    )


def _queue_labels(job: Job, settings: Settings) -> dict[str, Any]:
    """The labels by which Kueue takes the job.

    Kueue reads priorityClassName from the pods. Its own WorkloadPriorityClass has no field of ours: the label of the
    user's object is passed on, where it has one.
    """
    queue = job.spec.compute.queue_name or settings.queue_name
    if not queue:
        return {}
    priority = (job.metadata.labels or {}).get(QUEUE_PRIORITY_LABEL)
    return {QUEUE_LABEL: queue, **({QUEUE_PRIORITY_LABEL: priority} if priority else {})}
