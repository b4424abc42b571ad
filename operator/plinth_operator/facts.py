"""What the watches keep of each object: only what plan and status read, so that a thousand jobs fit in memory.

`status/` makes them from manifests, `store.py` holds them, `plan/` decides from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from plinth_api.service_state import CandidateState

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What every object has.

    Attributes:
        kind: Kind of the object.
        owner_uid: uid of the Plinth resource it belongs to: our label, else empty.
        resource_version: As a number: two versions of one object are ordered by it.
        hash: Our hash annotation; empty on objects of others.
        spec_hash: Our annotation with the hash of the spec it was rendered from; empty where there is none.
        deleting: Whether it has a deletionTimestamp.
        spec: The spec as JSON, of those kinds whose hand edits we undo: RayService, NetworkPolicy, Ingress.
    """

    kind: str
    namespace: str
    name: str
    uid: str
    owner_uid: str
    resource_version: int
    created_at: datetime | None = None
    hash: str = ""
    spec_hash: str = ""
    deleting: bool = False
    spec: str = ""


@dataclass(frozen=True, slots=True)
class RayJobFacts(ObjectFacts):
    """status.jobStatus, status.jobDeploymentStatus and the rest of a RayJob, as KubeRay spells them."""

    attempt: int = 0
    spec_generation: int = 0
    """Our annotation with the generation of the spec that it was rendered from; 0 where there is none."""
    job_status: str = ""
    deployment_status: str = ""
    reason: str = ""
    message: str = ""
    ray_cluster: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    suspended: bool = False
    """spec.suspend: Kueue holds the job."""
    program_ended: bool = False
    """Ray itself has told the end of the program; KubeRay gives up on a job, and calls it FAILED, without that too."""


@dataclass(frozen=True, slots=True)
class RayClusterFacts(ObjectFacts):
    """What KubeRay says of a cluster.

    Attributes:
        owner_name: The RayJob or RayService that it belongs to.
        failure: Message of its ReplicaFailure condition, while it is True.
    """

    owner_name: str = ""
    state: str = ""
    head_ready: bool = False
    provisioned: bool = False
    ready_workers: int = 0
    desired_workers: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """The state of one container, init containers included.

    Attributes:
        image: As the pod asks for it.
        waiting: Reason for waiting: ImagePullBackOff, CreateContainerConfigError, CrashLoopBackOff...
        terminated: Reason of the end (OOMKilled, Error, Completed), of the last run where it waits to run again.
        exit_code: Of that end.
        last_terminated: Reason of the end before, where it runs again.
        message: Message of whichever applies.
    """

    name: str
    image: str = ""
    ready: bool = False
    waiting: str = ""
    terminated: str = ""
    exit_code: int | None = None
    last_terminated: str = ""
    restarts: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class PodFacts(ObjectFacts):
    """A pod of a Ray cluster, or KubeRay's submitter.

    Attributes:
        role: head, worker or submitter.
        ray_cluster: Name of its cluster; empty for a submitter.
        reason: status.reason: Evicted, NodeLost, Preempting, UnexpectedAdmissionError...
        unschedulable: The scheduler's words while PodScheduled is False.
        disruption: Reason of the DisruptionTarget condition: PreemptionByScheduler, EvictionByEvictionAPI,
            DeletionByTaintManager, TerminationByKubelet...
        ip: status.podIP; empty before it has one.
    """

    role: Literal["head", "worker", "submitter"] = "worker"
    ray_cluster: str = ""
    phase: str = ""
    reason: str = ""
    message: str = ""
    node: str = ""
    ready: bool = False
    unschedulable: str = ""
    disruption: str = ""
    ip: str = ""
    containers: tuple[ContainerFacts, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkloadFacts(ObjectFacts):
    """A Kueue Workload; `owner_name` is the RayJob it stands for, `message` says what it waits for."""

    owner_name: str = ""
    admitted: bool = False
    evicted: str = ""
    """Reason of the Evicted condition while it is True: Preempted, PodsReadyTimeout, Deactivated..."""
    inactive: bool = False
    message: str = ""


@dataclass(frozen=True, slots=True)
class ApplicationFacts:
    """The Serve application in one of a RayService's clusters, and the status of its deployment."""

    cluster: str = ""
    status: str = ""
    message: str = ""
    deployment: str = ""


@dataclass(frozen=True, slots=True)
class RayServiceFacts(ObjectFacts):
    """What KubeRay says of a service; `active` answers requests, `pending` is a second cluster on its way."""

    cluster_hash: str = ""
    generation: int = 0
    observed_generation: int = 0
    serve_config: str = ""
    ready: bool = False
    ready_reason: str = ""
    ready_message: str = ""
    endpoints: int = 0
    active: ApplicationFacts | None = None
    pending: ApplicationFacts | None = None


@dataclass(frozen=True, slots=True)
class ClaimFacts(ObjectFacts):
    """A PersistentVolumeClaim."""

    phase: str = ""
    access_modes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What MLflow says of a job's run.

    Attributes:
        run_id: The run; found by its tags, or created.
        status: RUNNING, FINISHED, FAILED or KILLED; empty before the first search.
        step: Step of the newest training metric.
        step_at: When that step was done, by the workload's clock.
        saved_at: The same of the newest checkpoint that was saved; `saved_step` is its step.
        metrics: Latest value of each metric.
        tags: The run's tags.
        read_at: When the search answered.
    """

    run_id: str
    experiment_id: str
    status: str = ""
    step: int | None = None
    step_at: datetime | None = None
    saved_step: int | None = None
    saved_at: datetime | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    read_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What the state endpoint of a service answered (plinth_workloads.serving).

    Attributes:
        adapters: Name and URI of each adapter that answers.
        adapter_errors: Name of each that does not, and why.
        loading: How far the loading of a version is, for people; empty while none is loaded.
        held: What requests wait for; empty while they do not.
        replica_id: Which replica it is.
        candidate: The version that it tries, if any.
    """

    model_uri: str
    target_uri: str
    load_error: str
    read_at: datetime
    has_no_keys: bool = False
    prompt_hash: str = ""
    adapters: tuple[tuple[str, str], ...] = ()
    adapter_errors: tuple[tuple[str, str], ...] = ()
    loading: str = ""
    held: str = ""
    replica_id: str = ""
    candidate: CandidateState | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that is known of one resource and its surroundings when it is reconciled.

    Attributes:
        children: Objects with our uid label that have no list of their own: ConfigMap, NetworkPolicy, Service, Ingress.
        ray_jobs: By attempt, ascending.
        claims: Claims of the namespace by name.
        run: The MLflow run, None where none is known yet.
        versions: For each alias URI asked for: the URI with its version, "" where there is no such alias.
        replica: What any replica of a service told: through its Service, or itself where that scales to zero.
        replicas: What each told for itself; only while a version is tried.
        tracking_error: Why MLflow does not answer; empty while it does.
        kuberay: Whether KubeRay's kinds are served.
    """

    children: tuple[ObjectFacts, ...] = ()
    ray_jobs: tuple[RayJobFacts, ...] = ()
    ray_clusters: tuple[RayClusterFacts, ...] = ()
    ray_services: tuple[RayServiceFacts, ...] = ()
    pods: tuple[PodFacts, ...] = ()
    workloads: tuple[WorkloadFacts, ...] = ()
    claims: Mapping[str, ClaimFacts] = field(default_factory=dict)
    run: RunFacts | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    replica: ReplicaState | None = None
    replicas: tuple[ReplicaState, ...] = ()
    tracking_error: str = ""
    kuberay: bool = True

    @property
    def all_replicas(self) -> tuple[ReplicaState, ...]:
        """Each replica that is known, one that was met through the Service where none could be asked by itself."""
        return self.replicas or ((self.replica,) if self.replica else ())
