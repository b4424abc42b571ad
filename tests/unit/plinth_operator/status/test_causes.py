"""Why a job or a service does not run yet: from what is below it to the deepest cause."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from plinth_operator.facts import PodFacts, ReplicaState
from plinth_operator.status.causes import service_cause, waiting_cause
from plinth_operator.status.kueue import facts_from_workload
from plinth_operator.status.pods import facts_from_pod
from plinth_operator.status.raycluster import facts_from_raycluster
from plinth_operator.status.rayservice import facts_from_rayservice
from plinth_operator.status.reasons import REASONS
from unit.plinth_operator.status.manifests import (
    CLUSTER,
    CUDA,
    NO_GPU,
    RUNS,
    application,
    container,
    crashed,
    disrupted,
    kueue_condition,
    pod,
    ray_cluster,
    ray_service,
    record,
    replica_failure,
    terminated,
    unschedulable,
    waiting,
    waiting_pod,
    workload,
)


def waits(pods=(), clusters=(), workloads=()):
    cause = waiting_cause(
        [facts_from_pod(p) for p in pods],
        [facts_from_raycluster(c) for c in clusters],
        [facts_from_workload(w) for w in workloads],
    )
    assert cause is None or cause.reason in REASONS
    return cause


def quota(message, **more):
    return workload(kueue_condition("QuotaReserved", "False", "Pending", message), **more)


CRASH_LOOP = container(
    state=waiting("CrashLoopBackOff", "back-off 5m0s"), last=terminated(2, "Error", "no GPU"), restartCount=4
)
MISSING_KEY = "couldn't find key password in Secret team-a/mlflow"

WAITING_PODS = [
    (
        "a worker that cannot pull its image",
        waiting_pod("ImagePullBackOff", 'Back-off pulling image "plinth-workloads:1": not found'),
        "ImagePullFailed",
        [CLUSTER, "on node node-7", "image plinth-workloads:1", "not found", "spec.compute.imagePullSecrets"],
    ),
    (
        "an init container with a wrong image name",
        pod(phase="Pending", init=[container("wait-gcs-ready", state=waiting("InvalidImageName"))]),
        "ImagePullFailed",
        ["plinth-workloads:1", "InvalidImageName"],
    ),
    (
        "a missing secret",
        waiting_pod("CreateContainerConfigError", 'secret "hf-token" not found'),
        "SecretNotFound",
        ["Secret hf-token", "ray-worker", "create it in the namespace"],
    ),
    (
        "a missing key of a secret",
        waiting_pod("CreateContainerConfigError", MISSING_KEY),
        "SecretNotFound",
        ["key password of Secret mlflow"],
    ),
    (
        "a missing config map",
        waiting_pod("CreateContainerConfigError", 'configmap "run-1" not found'),
        "ConfigMapNotFound",
        ["ConfigMap run-1"],
    ),
    (
        "a configuration that the kubelet refuses",
        waiting_pod("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
        "ContainerCrashed",
        ["runAsNonRoot"],
    ),
    (
        "a container that cannot be started",
        waiting_pod("RunContainerError", 'exec: "ray": executable file not found in $PATH'),
        "ContainerCrashed",
        ["executable file not found", "kubectl describe pod"],
    ),
    (
        "a container that crashes again and again",
        pod(containers=[CRASH_LOOP], conditions=[]),
        "ContainerCrashed",
        ["exit code 2 (no GPU), 4 times so far", "kubectl logs", "--previous"],
    ),
    ("a worker out of memory", crashed(137, "OOMKilled"), "HostOutOfMemory", ["compute.perWorker.memory"]),
    ("a head out of memory", crashed(137, "OOMKilled", role="head"), "HostOutOfMemory", ["platform team"]),
    ("a worker that fits nowhere", unschedulable(NO_GPU), "Unschedulable", [NO_GPU, "spec.compute"]),
    (
        "a claim without a volume",
        unschedulable("pod has unbound immediate PersistentVolumeClaims."),
        "Unschedulable",
        ["unbound immediate PersistentVolumeClaims", "kubectl describe pvc"],
    ),
    (
        "a pod that its node refused",
        pod(phase="Failed", reason="UnexpectedAdmissionError", message="no GPU left", conditions=[]),
        "NodeLost",
        ["UnexpectedAdmissionError", "no GPU left"],
    ),
    (
        "a pod that was preempted before it ran",
        disrupted("PreemptionByScheduler", phase="Failed"),
        "Preempted",
        ["higher priority"],
    ),
    ("a pod that was evicted before it ran", pod(phase="Failed", reason="Evicted"), "NodeLost", ["Evicted"]),
]


@pytest.mark.parametrize(
    ("manifest", "reason", "words"), [c[1:] for c in WAITING_PODS], ids=[c[0] for c in WAITING_PODS]
)
def test_a_pod_that_does_not_run_says_why(manifest, reason, words):
    cause = waits([pod("head"), manifest])
    assert cause is not None
    assert cause.reason == reason
    for word in words:
        assert word in cause.message


@pytest.mark.parametrize(
    "manifest",
    [
        pod(phase="Pending", conditions=[], containers=[container(state=waiting("ContainerCreating"))]),
        pod(
            phase="Pending",
            conditions=[],
            init=[container("wait-gcs-ready", state=terminated(0, "Completed"))],
            containers=[container(state=waiting("PodInitializing"))],
        ),
        pod(containers=[container(state=RUNS, last=terminated(137, "OOMKilled"), ready=True)]),
        pod(phase="Failed", conditions=[]),
        waiting_pod("ImagePullBackOff", deleting=True),
        crashed(1, role="submitter"),
    ],
    ids=[
        "a container that is being made",
        "an init container that is done",
        "a container that runs again",
        "a pod that failed without a word",
        "a pod that is being deleted",
        "a submitter that ended with its program",
    ],
)
def test_a_pod_on_its_way_is_no_cause(manifest):
    assert waits([manifest]) is None


CLUSTER_FAILURES = [
    (
        "a resource quota",
        'failed to create worker pod: pods "x" is forbidden: exceeded quota: gpus, requested: nvidia.com/gpu=8',
        "QuotaExceeded",
        "kubectl describe resourcequota -n team-a",
    ),
    (
        "a resource quota that wants limits",
        'pods "x" is forbidden: failed quota: mem: must specify limits.memory',
        "QuotaExceeded",
        "must specify limits.memory",
    ),
    (
        "pod security",
        'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
        "PodForbidden",
        "restricted:latest",
    ),
    (
        "a service account",
        'error looking up service account team-a/ml: serviceaccount "ml" not found',
        "PodForbidden",
        "ml",
    ),
    ("anything else", "context deadline exceeded", "PodCreationFailed", "kubectl describe raycluster"),
]


@pytest.mark.parametrize(
    ("message", "reason", "word"), [c[1:] for c in CLUSTER_FAILURES], ids=[c[0] for c in CLUSTER_FAILURES]
)
def test_a_cluster_whose_pods_are_refused_says_by_whom(message, reason, word):
    cause = waits(clusters=[ray_cluster(), replica_failure(message)])
    assert cause is not None
    assert cause.reason == reason
    assert word in cause.message


UNUSED = "couldn't assign flavors to pod set workers: insufficient unused quota for cpu in flavor a, 4 more needed"
NEVER = (
    "couldn't assign flavors to pod set workers: insufficient quota for cpu in flavor a, request > maximum capacity (4)"
)
QUEUE = [
    ("quota in use", quota(UNUSED), "WaitingForQuota", "starts by itself"),
    ("more than the queue has", quota(NEVER), "ExceedsQuota", "larger than its queue"),
    ("more than one flavor has", quota(f"{NEVER}, {UNUSED.split(': ')[1]}"), "WaitingForQuota", "insufficient"),
    ("one pod set that never fits", quota(f"{UNUSED}. {NEVER}"), "ExceedsQuota", "larger than its queue"),
    (
        "a resource that the queue does not have",
        quota("couldn't assign flavors to pod set workers: resource nvidia.com/gpu unavailable in ClusterQueue"),
        "ExceedsQuota",
        "nvidia.com/gpu",
    ),
    ("no such queue", quota("LocalQueue team-x doesn't exist"), "QueueNotFound", "queueName"),
    ("a queue that is stopped", quota("ClusterQueue research is inactive"), "WaitingForQuota", "is inactive"),
    ("nothing said yet", workload(), "WaitingForQuota", "the job waits for quota in its queue; it starts by itself"),
    ("deactivated", workload(active=False), "DeactivatedByKueue", "kubectl describe workload"),
    (
        "preempted",
        quota(UNUSED) | {"status": {"conditions": [kueue_condition("Evicted", "True", "Preempted", "for another")]}},
        "WaitingForQuota",
        "took back the quota (Preempted)",
    ),
]


@pytest.mark.parametrize(("manifest", "reason", "word"), [c[1:] for c in QUEUE], ids=[c[0] for c in QUEUE])
def test_a_job_in_its_queue_says_what_it_waits_for(manifest, reason, word):
    cause = waits(workloads=[manifest])
    assert cause is not None
    assert cause.reason == reason
    assert word in cause.message


def test_nothing_is_wrong_with_a_job_that_is_admitted_and_runs():
    admitted = workload(kueue_condition("QuotaReserved", "True"), kueue_condition("Admitted", "True"))
    assert waits([pod("head"), pod()], [ray_cluster()], [admitted]) is None
    assert waits() is None


def test_the_deepest_cause_wins():
    pods = [unschedulable(NO_GPU), waiting_pod("ErrImagePull", "not found", name="z")]
    clusters, workloads = [replica_failure("exceeded quota")], [quota(UNUSED)]
    reasons = [
        waits(pods, clusters, workloads).reason,
        waits(pods[:1], clusters, workloads).reason,
        waits((), clusters, workloads).reason,
        waits((), (), workloads).reason,
    ]
    assert reasons == ["ImagePullFailed", "Unschedulable", "QuotaExceeded", "WaitingForQuota"]


def test_a_long_message_is_cut_to_one_line():
    cause = waits([waiting_pod("ErrImagePull", "no\nsuch " + "x" * 5000)])
    assert "no such x" in cause.message
    assert len(cause.message) < 1500


def serves(*, service=None, pods=(), clusters=(), replica=None):
    cause = service_cause(
        facts_from_rayservice(service or ray_service()),
        [facts_from_pod(p) for p in pods],
        [facts_from_raycluster(c) for c in clusters],
        replica,
    )
    assert cause is None or cause.reason in REASONS
    return cause


def replica(error="", target="models:/pycode/4"):
    return ReplicaState("models:/pycode/3", target, error, datetime(2026, 3, 1, tzinfo=UTC))


def not_ready(reason, message=""):
    conditions = [{"type": "Ready", "status": "False", "reason": reason, "message": message}]
    return ray_service(conditions=conditions)


DEPLOY_FAILED = application("DEPLOY_FAILED", "Deploying app 'plinth' failed: no module named x")
SERVICES = [
    ("a model that cannot be loaded", {"replica": replica("no config.json")}, "ModelLoadFailed", "models:/pycode/4"),
    ("the only model", {"replica": replica("no config.json", "")}, "ModelLoadFailed", "models:/pycode/3"),
    (
        "an adapter that cannot be loaded",
        {"replica": replace(replica(), adapter_errors=(("docs", "it is for another model"),))},
        "ModelLoadFailed",
        "adapter docs cannot be served: it is for another model",
    ),
    ("no API key", {"replica": replace(replica(), has_no_keys=True)}, "SecretNotFound", "apiKeySecretRef"),
    ("a pod without its image", {"pods": [waiting_pod("ErrImagePull", "not found")]}, "ImagePullFailed", "not found"),
    (
        "an application that failed",
        {"service": ray_service(active=DEPLOY_FAILED)},
        "RuntimeUnhealthy",
        "no module named x",
    ),
    (
        "an application that says nothing",
        {"service": ray_service(active=application("UNHEALTHY"))},
        "RuntimeUnhealthy",
        "kubectl describe rayservice",
    ),
    (
        "a second cluster that fails",
        {
            "service": ray_service(
                active=application("RUNNING"), pending=application("DEPLOY_FAILED", CUDA, cluster="c-2")
            )
        },
        "CudaOutOfMemory",
        "2.00 GiB",
    ),
    (
        "an application with a record",
        {"service": ray_service(active=application("DEPLOY_FAILED", record("ModelNotFound", "no version 9")))},
        "ModelNotFound",
        "no version 9",
    ),
    ("a quota", {"clusters": [replica_failure("exceeded quota: gpus")]}, "QuotaExceeded", "gpus"),
    ("no start in time", {"service": not_ready("InitializingTimeout", "after 30m")}, "StartupTimeout", "after 30m"),
]


@pytest.mark.parametrize(("given", "reason", "word"), [c[1:] for c in SERVICES], ids=[c[0] for c in SERVICES])
def test_a_service_that_does_not_answer_says_why(given, reason, word):
    cause = serves(**given)
    assert cause is not None
    assert cause.reason == reason
    assert word in cause.message


def test_nothing_is_wrong_with_a_service_that_answers_or_starts():
    well = ray_service(active=application("RUNNING"), pending=application("DEPLOYING", cluster="c-2"))
    assert serves(service=well, pods=[pod("head"), pod()], clusters=[ray_cluster()], replica=replica()) is None
    assert serves(service=not_ready("Initializing")) is None


def test_the_facts_of_a_pod_are_enough_for_a_place():
    cause = waiting_cause([PodFacts("Pod", "a", "p", "u", "", 1, role="head", unschedulable="no node")], (), ())
    assert cause is not None
    assert "head pod p: no node" in cause.message
