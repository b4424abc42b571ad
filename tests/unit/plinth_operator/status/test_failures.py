"""Why an attempt failed, and when it is lost with its head."""

import pytest

from plinth_operator.facts import RunFacts
from plinth_operator.status.causes import failure_cause, lost_head_cause
from plinth_operator.status.pods import facts_from_pod
from plinth_operator.status.raycluster import facts_from_raycluster
from plinth_operator.status.rayjob import facts_from_rayjob
from plinth_operator.status.reasons import REASONS
from unit.plinth_operator.status.manifests import (
    CLUSTER,
    CUDA,
    NO_GPU,
    RAY_JOB,
    RUNS,
    container,
    crashed,
    disrupted,
    failed_ray_job,
    pod,
    ray_job,
    record,
    replica_failure,
    terminated,
    unschedulable,
)


def fails(*, message="", pods=(), clusters=(), run=None, **status):
    cause = failure_cause(
        facts_from_rayjob(failed_ray_job(message=message, **status)),
        [facts_from_pod(p) for p in pods],
        [facts_from_raycluster(c) for c in clusters],
        run,
    )
    assert cause.reason in REASONS
    return cause


DRIVER = "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\n"
GLOO = "RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:43511"
TRAIN = (
    "a worker failed: The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker "
    "exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: "
    "(1) the process was killed by the OOM killer due to high memory usage"
)
ACTOR = "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task."

FAILURES = [
    (
        "the workload's own record",
        {"message": f"{DRIVER}step 12\n{record('LossNaN', 'the loss is NaN at step 12')}\n"},
        "LossNaN",
        "the loss is NaN at step 12",
    ),
    (
        "a record behind a prefix, with lines after it",
        {"message": f"{DRIVER}(pid=12) {record('DatasetNotFound', 'no file')} \nbye"},
        "DatasetNotFound",
        "no file",
    ),
    (
        "the last of two records",
        {"message": f"{record('InvalidData', 'a')}\n{record('AccessDenied', 'b')}"},
        "AccessDenied",
        "b",
    ),
    (
        "a path on a claim",
        {"message": record("DatasetNotFound", "file:///mnt/plinth/volumes/corpora/a.jsonl is not there")},
        "DatasetNotFound",
        "pvc://corpora/a.jsonl is not there",
    ),
    ("a record without a message", {"message": '{"plinth": "failure", "reason": "LossNaN"}'}, "LossNaN", "LossNaN"),
    ("a record of a reason that is not listed", {"message": record("Odd", "words")}, "UserCodeError", "words"),
    (
        "other JSON, and half a record",
        {"message": '{"plinth": "step"} {"a": [\n["x"]\n{"plinth": "failure", "rea'},
        "UserCodeError",
        "the program of RayJob",
    ),
    ("CUDA out of memory", {"message": f"{DRIVER}{CUDA}\nmore"}, "CudaOutOfMemory", "training.microBatchSize"),
    (
        "CUDA out of memory in a record of any error",
        {"message": record("UserCodeError", CUDA), "pods": [crashed(137, "OOMKilled")]},
        "CudaOutOfMemory",
        "2.00 GiB",
    ),
    ("a collective that timed out", {"message": f"{DRIVER}{GLOO}"}, "CollectiveTimeout", "Connection closed by peer"),
    (
        "a collective whose worker was killed",
        {"message": record("UserCodeError", GLOO), "pods": [crashed(137, "OOMKilled")]},
        "HostOutOfMemory",
        "on node node-7",
    ),
    (
        "a worker that ran out of memory and was started again",
        {
            "message": record("UserCodeError", "a worker failed"),
            "pods": [pod(containers=[container(state=RUNS, last=terminated(137, "OOMKilled"))])],
        },
        "HostOutOfMemory",
        "killed",
    ),
    (
        "Ray's own memory monitor",
        {"message": "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory."},
        "HostOutOfMemory",
        "running low",
    ),
    (
        "a preempted worker, of which the driver knows only that it is gone",
        {"message": record("UserCodeError", "a worker failed"), "pods": [disrupted("PreemptionByScheduler")]},
        "Preempted",
        "higher priority",
    ),
    ("a drained node", {"message": GLOO, "pods": [disrupted("EvictionByEvictionAPI")]}, "NodeLost", "Eviction"),
    (
        "a pod that the kubelet preempted, in its words",
        {"pods": [pod(phase="Failed", reason="Preempting", message="Preempted in order to admit critical pod")]},
        "Preempted",
        "critical pod",
    ),
    (
        "an evicted worker",
        {"pods": [pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory.")]},
        "NodeLost",
        "low on resource",
    ),
    (
        "an eviction does not hide what the workload knows better",
        {"message": record("InvalidData", "row 3"), "pods": [pod(phase="Failed", reason="Evicted")]},
        "InvalidData",
        "row 3",
    ),
    (
        "a node that died, in Ray's words",
        {"message": "The actor died because its node has died."},
        "NodeLost",
        "kubectl",
    ),
    (
        "workers that no longer move, and their ends in Ray's words",
        {
            "message": f"{DRIVER}{ACTOR}\n{GLOO}\n{record('NoProgress', 'rank 1 of 2 is at a:1 b')}",
            "pods": [crashed(75)],
        },
        "NoProgress",
        "rank 1 of 2 is at a:1 b",
    ),
    (
        "workers that no longer move, as the node of one is gone",
        {"message": record("NoProgress", "rank 1 of 2"), "pods": [disrupted("EvictionByEvictionAPI")]},
        "NodeLost",
        "Eviction",
    ),
    ("a worker process that died", {"message": record("UserCodeError", ACTOR)}, "ContainerCrashed", "worker pods"),
    (
        "a worker process that died, in Ray Train's words",
        {"message": record("UserCodeError", TRAIN)},
        "ContainerCrashed",
        "worker pods",
    ),
    (
        "a worker process that Ray ended for lack of memory",
        {"message": record("UserCodeError", f"a worker failed: ray.exceptions.OutOfMemoryError: {'Task ' * 100}")},
        "HostOutOfMemory",
        "raise compute.perWorker.memory",
    ),
    (
        "a worker process that died with its container",
        {"message": record("UserCodeError", ACTOR), "pods": [crashed(139)]},
        "ContainerCrashed",
        "exit code 139",
    ),
    (
        "an actor whose constructor raised",
        {"message": "ActorDiedError: The actor died because of an error raised in its creation task, ValueError: x"},
        "UserCodeError",
        "ValueError: x",
    ),
    (
        "a container that crashed, and no word",
        {"pods": [crashed(1, message="segfault")]},
        "ContainerCrashed",
        "segfault",
    ),
    (
        "pods that end with their cluster say nothing",
        {"message": "ValueError: x", "pods": [crashed(143, deleting=True), crashed(1, role="submitter")]},
        "UserCodeError",
        "ValueError: x",
    ),
    (
        "a job that KubeRay refuses",
        {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "the name is too long"},
        "RayJobInvalid",
        "the name is too long",
    ),
    ("a deadline", {"reason": "DeadlineExceeded"}, "DeadlineExceeded", "activeDeadlineSeconds"),
    (
        "a deadline for pods that never ran, with what they wait for",
        {"reason": "PreRunningDeadlineExceeded", "pods": [unschedulable(NO_GPU)]},
        "Unschedulable",
        NO_GPU,
    ),
    (
        "a deadline for pods that were never made",
        {"reason": "PreRunningDeadlineExceeded", "clusters": [replica_failure("exceeded quota: gpus")]},
        "QuotaExceeded",
        "gpus",
    ),
    (
        "a deadline before running, and nobody knows why",
        {"reason": "PreRunningDeadlineExceeded", "message": "The RayJob has passed the preRunningDeadlineSeconds."},
        "StartupTimeout",
        "preRunningDeadlineSeconds",
    ),
    (
        "a submission that failed",
        {"reason": "SubmissionFailed", "message": "BackoffLimitExceeded"},
        "SubmissionFailed",
        "Back",
    ),
    (
        "a job that KubeRay lost sight of",
        {"reason": "JobDeploymentStatusTransitionGracePeriodExceeded"},
        "SubmissionFailed",
        "GracePeriod",
    ),
    ("a head that is gone", {"message": "Ray head pod not found."}, "HeadLost", "head pod"),
    ("a head that does not answer", {"reason": "JobStatusCheckTimeoutExceeded"}, "HeadLost", "head pod"),
    (
        "a job that was stopped",
        {"jobStatus": "STOPPED", "jobDeploymentStatus": "Complete", "reason": ""},
        "RayJobStopped",
        "spec.suspend",
    ),
    (
        "a traceback",
        {"message": f"{DRIVER}Traceback:\n\n  File x\nKeyError: 'loss'"},
        "UserCodeError",
        "KeyError: 'loss'",
    ),
    ("nothing at all", {}, "UserCodeError", f"kubectl describe rayjob {RAY_JOB} -n team-a"),
]


@pytest.mark.parametrize(("given", "reason", "word"), [c[1:] for c in FAILURES], ids=[c[0] for c in FAILURES])
def test_a_failed_attempt_has_the_deepest_reason(given, reason, word):
    cause = fails(**given)
    assert cause.reason == reason
    assert word in cause.message


def test_pods_of_another_attempt_explain_nothing():
    other = crashed(137, "OOMKilled", cluster="pycode-base-0c3a1-2-aaaaa")
    assert fails(message="ValueError: x", pods=[other]).reason == "UserCodeError"
    assert fails(message="ValueError: x", pods=[other], rayClusterName="").reason == "HostOutOfMemory"
    submitter = pod("submitter", phase="Failed", reason="Evicted")
    assert fails(reason="SubmissionFailed", pods=[submitter]).reason == "NodeLost"


def test_a_users_error_keeps_its_last_lines():
    message = "\n".join(f"line {n}" for n in range(40)) + "\nValueError: " + "x" * 3000
    cause = fails(message=message)
    assert cause.message.endswith("xxx")
    assert len(cause.message) < 2200
    assert "line 39" not in cause.message
    assert "line 29" not in fails(message="\n".join(f"line {n}" for n in range(40))).message


def run(status="FAILED", **tags):
    return RunFacts("r1", "7", status=status, tags={f"plinth.{name}": value for name, value in tags.items()})


@pytest.mark.parametrize(
    ("found", "reason", "word"),
    [
        (run(failureReason="LossNaN", failureMessage="step 9"), "LossNaN", "step 9"),
        (run(failureReason="LossNaN"), "LossNaN", "run r1 in MLflow"),
        (run(status="RUNNING", failureReason="LossNaN"), "UserCodeError", "no message"),
        (run(), "UserCodeError", "no message"),
    ],
    ids=["written", "without a message", "of an attempt before", "not written"],
)
def test_without_a_record_the_mlflow_run_says_why(found, reason, word):
    cause = fails(run=found)
    assert cause.reason == reason
    assert word in cause.message
    assert fails(run=found, message=record("InvalidData", "row 3")).reason == "InvalidData"


def lost(*pods, job=None):
    return lost_head_cause(facts_from_rayjob(job or ray_job()), [facts_from_pod(p) for p in pods])


@pytest.mark.parametrize(
    "job",
    [
        ray_job(jobDeploymentStatus="Initializing"),
        ray_job(spec={"suspend": True}),
        ray_job(rayClusterName=""),
        ray_job() | {"metadata": {**ray_job()["metadata"], "deletionTimestamp": "2026-03-01T12:20:00Z"}},
    ],
    ids=["starting", "suspended", "without a cluster", "being deleted"],
)
def test_a_job_that_does_not_run_has_no_head_to_lose(job):
    assert lost(job=job) is None


@pytest.mark.parametrize(
    "head",
    [
        pod("head", containers=[container("ray-head", state=RUNS, ready=True)]),
        pod("head", conditions=[], containers=[container("ray-head", state=RUNS)]),
        pod("head", init=[container("prepare", state=terminated(0, "Completed"))], conditions=[]),
        pod("head", containers=[container("ray-job-submitter", state=terminated(1))], conditions=[]),
    ],
    ids=["ready", "not ready for a moment", "with an init container that is done", "whose submitter ended"],
)
def test_a_head_that_runs_is_not_lost(head):
    assert lost(head, pod()) is None


@pytest.mark.parametrize(
    ("pods", "reason", "word"),
    [
        ([], "HeadLost", f"the head pod of RayCluster {CLUSTER} is gone"),
        ([pod()], "HeadLost", "is gone"),
        ([pod("head", deleting=True)], "HeadLost", "on node node-7 is being deleted"),
        ([pod("head", cluster="another")], "HeadLost", "is gone"),
        ([crashed(1, role="head")], "HeadLost", "exit code 1"),
        ([crashed(137, "OOMKilled", role="head")], "HostOutOfMemory", "killed"),
        ([disrupted("PreemptionByScheduler", "head", deleting=True)], "Preempted", "higher priority"),
        ([pod("head", phase="Failed", reason="NodeLost")], "NodeLost", "node-7"),
    ],
    ids=[
        "gone",
        "gone, workers there",
        "deleted",
        "of another cluster",
        "crashed",
        "out of memory",
        "preempted",
        "node lost",
    ],
)
def test_a_running_attempt_without_its_head_is_lost(pods, reason, word):
    cause = lost(*pods)
    assert cause is not None
    assert cause.reason == reason
    assert word in cause.message
    assert cause.reason in REASONS
