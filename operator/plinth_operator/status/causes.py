"""The one honest reason: from what is known of every object below a resource to the deepest cause, in a sentence.

Pods explain more than the RayCluster that they are of, that more than the RayJob, and that more than the queue.
"""

from collections.abc import Iterable, Sequence

from plinth_api.run_tags import FAILURE_MESSAGE, FAILURE_REASON
from plinth_operator.facts import (
    ApplicationFacts,
    PodFacts,
    RayClusterFacts,
    RayJobFacts,
    RayServiceFacts,
    ReplicaState,
    RunFacts,
    WorkloadFacts,
)
from plinth_operator.status.pod_causes import (
    crashed_pod_cause,
    ended_pod_cause,
    place,
    ray_containers,
    shorten,
    waiting_pod_cause,
)
from plinth_operator.status.reasons import Cause
from plinth_operator.status.words import can_never_fit, known_failure, last_lines, recorded_failure

_STUCK = frozenset({"NoProgress", "StartupTimeout"})
"""What a workload's watchdog says of workers that no longer move: more than anything but a pod that has ended."""

_CONSEQUENCES = frozenset({"UserCodeError", "CollectiveTimeout"}) | _STUCK
"""What a workload says when it does not know more than that another of its processes is gone."""

_LOST_SIGHT = frozenset({"SubmissionFailed", "JobDeploymentStatusTransitionGracePeriodExceeded"})
"""Reasons with which KubeRay ends a job without its words: its message is KubeRay's own."""

_SICK_APPLICATION = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})


def waiting_cause(
    pods: Iterable[PodFacts], clusters: Iterable[RayClusterFacts], workloads: Iterable[WorkloadFacts]
) -> Cause | None:
    """Why a job that should run does not yet; None where everything is on its way.

    Args:
        pods: Those of the current attempt.
        clusters: Those of the current attempt.
        workloads: Kueue's, of the current attempt's RayJob.
    """
    return waiting_pod_cause(pods) or _cluster_cause(clusters) or _queue_cause(workloads)


def failure_cause(
    ray_job: RayJobFacts,
    pods: Iterable[PodFacts],
    clusters: Iterable[RayClusterFacts],
    run: RunFacts | None,
    lost: Cause | None = None,
) -> Cause:
    """Why a RayJob that is over did not succeed.

    Args:
        ray_job: The attempt's.
        pods: Those that are still known; others than the attempt's are passed over.
        clusters: As the pods.
        run: The MLflow run; its tags are believed only while it is FAILED, as those of an earlier attempt stay.
        lost: What was done to a pod that may be known no more.
    """
    own_pods = _pods_of(ray_job, pods)
    if "ValidationFailed" in (ray_job.deployment_status, ray_job.reason):
        return Cause("RayJobInvalid", f"KubeRay refuses RayJob {ray_job.name}: {shorten(ray_job.message)}")
    if ray_job.reason == "DeadlineExceeded":
        todo = "raise activeDeadlineSeconds; what was saved is kept, and checkpoint.resumeFrom goes on from it"
        return Cause("DeadlineExceeded", f"RayJob {ray_job.name} ran longer than activeDeadlineSeconds; {todo}")
    if ray_job.reason == "PreRunningDeadlineExceeded":
        own_clusters = [cluster for cluster in clusters if cluster.name == ray_job.ray_cluster]
        return waiting_cause(own_pods, own_clusters, ()) or Cause(
            "StartupTimeout", f"the pods of RayJob {ray_job.name} did not run in time: {shorten(ray_job.message)}"
        )
    own = _own_words(ray_job, run)
    if own is not None and own.reason not in _CONSEQUENCES:
        return own
    if own is not None and own.reason in _STUCK:
        # The processes that it has ended are a consequence, whose words Ray adds.
        return ended_pod_cause(own_pods) or lost or own
    told = own.message if own is not None else ray_job.message
    known = known_failure(told) or (known_failure(ray_job.message) if own is not None else None)
    if known is not None and known.reason == "CudaOutOfMemory":
        return known
    if known is not None and known.reason == "ContainerCrashed":
        known = crashed_pod_cause(own_pods) or known
    return ended_pod_cause(own_pods) or lost or known or own or _kuberay_cause(ray_job, own_pods)


def lost_head_cause(ray_job: RayJobFacts, pods: Iterable[PodFacts]) -> Cause | None:
    """Why an attempt that is said to run cannot: its head pod failed, is going or is gone; None while it lives.

    KubeRay 1.6 gives up on a job whose head is gone only at activeDeadlineSeconds. RayJob and pods are watched apart,
    so the pods of a job that has just ended can go before its end is seen: the caller looks at the RayJob again first.
    """
    if ray_job.deployment_status != "Running" or ray_job.suspended or ray_job.deleting or not ray_job.ray_cluster:
        return None
    own_pods = _pods_of(ray_job, pods)
    heads = [pod for pod in own_pods if pod.role == "head"]
    if any(_lives(head) for head in heads):
        return None
    deeper = ended_pod_cause(heads)
    if deeper is not None:
        return deeper
    where = place(heads[0]) if heads else f"the head pod of RayCluster {ray_job.ray_cluster}"
    crash = crashed_pod_cause(heads)
    what = crash.message if crash is not None else f"{where} {'is being deleted' if heads else 'is gone'}"
    return Cause("HeadLost", f"{what}; the Ray job of {ray_job.name} ended with it")


def stopped_cause(ray_job: RayJobFacts, lost: Cause | None) -> Cause:
    """Why the workers of a job have saved and stopped before the last step: they do when one of its pods must go.

    Args:
        ray_job: The attempt's.
        lost: What was done to one of its pods, where that is known.
    """
    todo = "the next attempt goes on from what they saved; see kubectl get events"
    what = f"the workers of RayJob {ray_job.name} were told to save and stop, as they are when a pod is deleted"
    return lost or Cause("RayJobStopped", f"{what}; {todo} -n {ray_job.namespace}")


def suspended_cause(ray_job: RayJobFacts) -> Cause | None:
    """Why a RayJob that no queue holds does not start: somebody has suspended it; None where nobody has."""
    if not ray_job.suspended:
        return None
    todo = "set its spec.suspend to false, or delete it and the next attempt starts"
    return Cause("RayJobStopped", f"RayJob {ray_job.name} was suspended by somebody else; {todo}")


def service_cause(
    ray_service: RayServiceFacts,
    pods: Iterable[PodFacts],
    clusters: Iterable[RayClusterFacts],
    replica: ReplicaState | None,
) -> Cause | None:
    """Why a service does not answer, or does not take over a change; None where nothing is wrong.

    Args:
        ray_service: The service's.
        pods: Those of its clusters.
        clusters: Its one or two clusters.
        replica: What its state endpoint answered last.
    """
    if replica is not None and replica.load_error:
        target = replica.target_uri or replica.model_uri
        return Cause("ModelLoadFailed", f"{target} cannot be served: {shorten(replica.load_error)}")
    if replica is not None and replica.adapter_errors:
        name, why = replica.adapter_errors[0]
        return Cause("ModelLoadFailed", f"adapter {name} cannot be served: {shorten(why)}")
    if replica is not None and replica.has_no_keys:
        what = "the Secret of spec.access.apiKeySecretRef does not exist or has no value"
        return Cause(
            "SecretNotFound", f"{what}: all requests are refused; create it, and they are answered in a minute"
        )
    return (
        _refused_service(ray_service)
        or waiting_pod_cause(pods)
        or _application_cause(ray_service.name, (ray_service.pending, ray_service.active))
        or _cluster_cause(clusters)
        or _not_ready_cause(ray_service)
    )


def _pods_of(ray_job: RayJobFacts, pods: Iterable[PodFacts]) -> list[PodFacts]:
    """The pods of the job's cluster, and its submitter's; all that are given while the cluster has no name."""
    if not ray_job.ray_cluster:
        return list(pods)
    return [
        pod
        for pod in pods
        if pod.ray_cluster == ray_job.ray_cluster or (not pod.ray_cluster and pod.name.startswith(f"{ray_job.name}-"))
    ]


def _lives(head: PodFacts) -> bool:
    ended = any(container.exit_code for container in ray_containers(head))
    return not (head.deleting or ended or head.phase in ("Failed", "Succeeded"))


def _cluster_cause(clusters: Iterable[RayClusterFacts]) -> Cause | None:
    for cluster in sorted(clusters, key=lambda cluster: cluster.name):
        if cluster.failure and not cluster.deleting:
            return _refused_pods(cluster)
    return None


def _refused_pods(cluster: RayClusterFacts) -> Cause:
    words = shorten(cluster.failure)
    if "exceeded quota" in words or "failed quota" in words:
        todo = f"ask for less, or have it raised: kubectl describe resourcequota -n {cluster.namespace}"
        return Cause(
            "QuotaExceeded", f"the ResourceQuota of the namespace refuses pods of {cluster.name}: {words}; {todo}"
        )
    if "forbidden" in words or "serviceaccount" in words.lower():
        todo = "change the spec to what the cluster's policies allow, or create what is missing"
        return Cause("PodForbidden", f"the API server refuses pods of RayCluster {cluster.name}: {words}; {todo}")
    todo = f"see kubectl describe raycluster {cluster.name} -n {cluster.namespace}"
    return Cause(
        "PodCreationFailed", f"KubeRay cannot create or delete pods of RayCluster {cluster.name}: {words}; {todo}"
    )


def _queue_cause(workloads: Iterable[WorkloadFacts]) -> Cause | None:
    waiting = [workload for workload in workloads if not workload.deleting]
    return next((_waits_in_queue(workload) for workload in waiting if workload.inactive or not workload.admitted), None)


def _waits_in_queue(workload: WorkloadFacts) -> Cause:
    words = shorten(workload.message)
    said = f": {words}" if words else ""
    see = f"see kubectl describe workload {workload.name} -n {workload.namespace}"
    if workload.inactive:
        return Cause("DeactivatedByKueue", f"the job was taken out of its queue{said}; {see}")
    if can_never_fit(words):
        todo = "ask for less in spec.compute, name another queue, or have the quota raised"
        return Cause("ExceedsQuota", f"the job is larger than its queue can ever take{said}; {todo}")
    if "doesn't exist" in words:
        return Cause(
            "QueueNotFound", f"the job waits for a queue{said}; correct spec.compute.queueName, or have it created"
        )
    if workload.evicted:
        return Cause(
            "WaitingForQuota", f"Kueue took back the quota ({workload.evicted}), and the job waits again{said}"
        )
    return Cause("WaitingForQuota", f"the job waits for quota in its queue{said}; it starts by itself")


def _own_words(ray_job: RayJobFacts, run: RunFacts | None) -> Cause | None:
    """What the workload itself said: the last line of its output, else the tags of its run."""
    recorded = recorded_failure(ray_job.message)
    if recorded is not None or run is None or run.status != "FAILED":
        return recorded
    return cause_from_tags(run)


def cause_from_tags(run: RunFacts) -> Cause | None:
    """The failure that the workload wrote on its MLflow run, None where it wrote none."""
    reason = run.tags.get(FAILURE_REASON, "")
    if not reason:
        return None
    return Cause(reason, run.tags.get(FAILURE_MESSAGE) or f"see the run {run.run_id} in MLflow")


def _kuberay_cause(ray_job: RayJobFacts, pods: Sequence[PodFacts]) -> Cause:
    """From KubeRay's own words, where neither the workload nor the pods say anything."""
    words = ray_job.message.strip()
    if "head pod not found" in words.lower() or ray_job.reason == "JobStatusCheckTimeoutExceeded":
        return Cause("HeadLost", f"the head pod of RayJob {ray_job.name} is gone, and the Ray job with it")
    # Before the submitter's end, which is an error then too.
    if ray_job.job_status == "STOPPED":
        todo = "to pause a job set spec.suspend, to end it delete it"
        return Cause("RayJobStopped", f"the Ray job of {ray_job.name} was stopped by somebody else; {todo}")
    if (crashed := crashed_pod_cause(pods)) is not None:
        return crashed
    see = f"see kubectl logs -l job-name={ray_job.name} -n {ray_job.namespace}"
    lost_sight = ray_job.reason in _LOST_SIGHT
    if ray_job.job_status != "FAILED" or (lost_sight and not ray_job.program_ended):
        return Cause("SubmissionFailed", f"RayJob {ray_job.name}: {shorten(words) or ray_job.reason}; {see}")
    if lost_sight:
        return Cause(
            "UserCodeError", f"the program of RayJob {ray_job.name} failed, and its last words are lost; {see}"
        )
    said = last_lines(words) or f"no message; see kubectl describe rayjob {ray_job.name} -n {ray_job.namespace}"
    return Cause("UserCodeError", f"the program of RayJob {ray_job.name} failed: {said}")


def _application_cause(service: str, applications: Iterable[ApplicationFacts | None]) -> Cause | None:
    sick = next((app for app in applications if app is not None and app.status in _SICK_APPLICATION), None)
    if sick is None:
        return None
    recorded = recorded_failure(sick.message) or known_failure(sick.message)
    if recorded is not None:
        return recorded
    said = last_lines(sick.message) or f"see kubectl describe rayservice {service}"
    return Cause("RuntimeUnhealthy", f"Ray Serve on {sick.cluster} is {sick.status}: {said}")


def _refused_service(ray_service: RayServiceFacts) -> Cause | None:
    if ray_service.ready_reason != "ValidationFailed":
        return None
    return Cause(
        "RayServiceInvalid", f"KubeRay refuses RayService {ray_service.name}: {shorten(ray_service.ready_message)}"
    )


def _not_ready_cause(ray_service: RayServiceFacts) -> Cause | None:
    """From KubeRay's own words, where neither pods nor the application say anything."""
    words = f"RayService {ray_service.name}: {shorten(ray_service.ready_message)}".rstrip(": ")
    match ray_service.ready_reason:
        case "InitializingTimeout":
            return Cause("StartupTimeout", f"{words}; KubeRay has given it up: delete it, and it is made anew")
        case "ZeroServeEndpoints":
            return Cause("RuntimeUnhealthy", f"{words}: no pod answers requests any more")
        case _:
            return None
