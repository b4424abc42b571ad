"""One look at a job: everything that the steps of its plan decide from. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from plinth_api.elastic import fewest_workers
from plinth_api.errors import InvalidSpec
from plinth_api.parse import Job
from plinth_api.status import Attempt, JobStatus
from plinth_operator.facts import Observed, PodFacts, RayClusterFacts, RayJobFacts, RunFacts
from plinth_operator.plan.rayjob import attempt_spec_hash
from plinth_operator.settings import Settings
from plinth_operator.status.pod_causes import ENDS_OF_PODS, ended_pod_cause
from plinth_operator.status.progress import training_since
from plinth_operator.status.reasons import Cause


@dataclass(frozen=True, slots=True)
class Look:
    """What is known at one moment.

    Attributes:
        job: What the user asks for, as far as it can be read.
        old: The status as it stands.
        seen: What is known of the job's surroundings.
        settings: Of the operator.
        now: The time.
        age: Since the job was created.
        refusal: Why the API server has just refused a child.
        unreadable: Why the spec cannot be read as a whole.
    """

    job: Job
    old: JobStatus
    seen: Observed
    settings: Settings
    now: datetime
    age: timedelta
    refusal: Cause | None = None
    unreadable: InvalidSpec | None = None

    @property
    def queued(self) -> bool:
        """Whether Kueue decides when a RayJob starts."""
        return bool(self.job.spec.compute.queue_name or self.settings.queue_name)

    def ray_job_of(self, attempt: Attempt) -> RayJobFacts | None:
        """The RayJob of an attempt, while there is one."""
        return next((facts for facts in self.seen.ray_jobs if facts.name == attempt.ray_job), None)

    def run_of(self, attempt: Attempt) -> RunFacts | None:
        """The run where it speaks of an attempt: until a later one trains, its tags and steps are of an earlier one."""
        run = self.seen.run
        if run is None or attempt.number == 1:
            return run
        since = training_since(run)
        told = since is not None and attempt.started_at is not None and since >= attempt.started_at
        return run if told else None

    def around(self, ray_job: RayJobFacts) -> tuple[tuple[PodFacts, ...], tuple[RayClusterFacts, ...]]:
        """The pods and clusters of one attempt: those of an earlier one may still be there."""
        pods = tuple(pod for pod in self.seen.pods if pod.ray_cluster == ray_job.ray_cluster or pod.role == "submitter")
        clusters = tuple(cluster for cluster in self.seen.ray_clusters if cluster.name == ray_job.ray_cluster)
        return pods, clusters

    def is_rendered_otherwise(self, ray_job: RayJobFacts) -> bool:
        """Whether an attempt of the present spec would be another one."""
        return ray_job.spec_hash not in ("", attempt_spec_hash(self.job))

    def has_drifted(self, ray_job: RayJobFacts) -> bool:
        """Whether the user has changed the spec since the RayJob was made.

        By the generation too: a Plinth that knows one field more has another hash for the same spec, and must not end
        every attempt that waits in a queue.
        """
        return self.is_rendered_otherwise(ray_job) and ray_job.spec_generation != (self.job.metadata.generation or 1)

    def lost_pod_cause(self, pods: Iterable[PodFacts]) -> Cause | None:
        """What was done to a pod of an attempt that trains, and ends by it; None where nothing was.

        The pod may be gone before the end of the RayJob is seen: the status remembers, until others are in its place.
        """
        pods = tuple(pods)
        cause = ended_pod_cause(pods)
        if cause is not None or self.old.reason not in ENDS_OF_PODS or self.old.phase not in ("Training", "Evaluating"):
            return cause
        there = sum(pod.role == "worker" and pod.ready and not pod.deleting for pod in pods)
        return Cause(self.old.reason, self.old.message or "") if there < fewest_workers(self.job.spec.compute) else None

    def needed(self, pods: tuple[PodFacts, ...]) -> tuple[PodFacts, ...]:
        """The pods without which an attempt that trains would not: an elastic one goes on without some workers."""
        compute = self.job.spec.compute
        ready = [pod for pod in pods if pod.role != "worker" or (pod.ready and not pod.deleting)]
        there = sum(pod.role == "worker" for pod in ready)
        return tuple(ready) if compute.elastic and there >= compute.elastic.min_workers else pods
