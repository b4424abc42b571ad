"""What the real KubeRay wrote, stage by stage, and what the status makes of it.

`python -m cluster.record_kuberay` recorded it. Shapes that no KubeRay at hand writes are in recorded/documented.json.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from makers import pretrain_document
from plinth_api.run import ServeModel
from plinth_operator.facts import (
    Observed,
    PodFacts,
    RayClusterFacts,
    RayJobFacts,
    RayServiceFacts,
    ReplicaState,
    RunFacts,
)
from plinth_operator.plan.jobs import plan_job
from plinth_operator.status.causes import waiting_cause
from plinth_operator.status.facts import facts_from
from plinth_operator.status.reasons import REASONS
from plinth_operator.status.services import service_verdict
from rendering import SETTINGS, UID

FOLDER = Path(__file__).parent / "recorded"
DOCUMENTED = "documented.json"
TARGET = "models:/team-a.tiny-chat/3"
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)

JOBS = {
    "succeeds: nothing yet": ("Starting", "", ""),
    "succeeds: Initializing": ("Starting", "", ""),
    "succeeds: Running": ("Starting", "", ""),
    "succeeds: Running PENDING": ("Starting", "", ""),
    "succeeds: Running RUNNING": ("Training", "", ""),
    # Until the submitter has ended too, KubeRay says Running.
    "succeeds: Running SUCCEEDED": ("Training", "", ""),
    "succeeds: Complete SUCCEEDED": ("Succeeded", "", ""),
    "fails: Running FAILED": ("Training", "", ""),
    "fails: Failed FAILED AppFailed": ("Failed", "LossNaN", "the loss is NaN at step 12"),
    "succeeds unnoticed: Complete SUCCEEDED JobDeploymentStatusTransitionGracePeriodExceeded": ("Succeeded", "", ""),
    "fails unnoticed: Failed FAILED JobDeploymentStatusTransitionGracePeriodExceeded": (
        "Failed",
        "UserCodeError",
        "its last words are lost; see kubectl logs -l job-name=tiny-abcde-1 -n team-a",
    ),
    "is stopped: Running STOPPED": ("Training", "", ""),
    # The submitter's end is an error then, which KubeRay takes for a submission that failed.
    "is stopped: Failed STOPPED SubmissionFailed": ("Pending", "RayJobStopped", "was stopped by somebody else"),
    "is stopped quietly: Complete STOPPED": ("Pending", "RayJobStopped", "was stopped by somebody else"),
    "cannot be submitted: Failed SubmissionFailed": (
        "Pending",
        "SubmissionFailed",
        "has reached the specified backoff",
    ),
    # Not the program's fault: the cluster was started anew, and knows nothing of the job.
    "is not found: Failed AppFailed": ("Pending", "SubmissionFailed", "Ray job not found in RayCluster"),
    # jobStatus FAILED is KubeRay's own here: Ray never said so.
    "outlives its submitter: Failed FAILED JobDeploymentStatusTransitionGracePeriodExceeded": (
        "Pending",
        "SubmissionFailed",
        "did not reach terminal state within 30s",
    ),
    "passes its deadline: Failed RUNNING DeadlineExceeded": (
        "Failed",
        "DeadlineExceeded",
        "raise activeDeadlineSeconds",
    ),
    "passes its deadline early: Failed DeadlineExceeded": ("Failed", "DeadlineExceeded", "raise activeDeadlineSeconds"),
    "never gets its pods: Failed PreRunningDeadlineExceeded": ("Pending", "StartupTimeout", "did not run in time"),
    "is invalid: ValidationFailed ValidationFailed": (
        "Failed",
        "RayJobInvalid",
        "a RayJob with shutdownAfterJobFinishes set to false cannot have TTLSecondsAfterFinished",
    ),
    "is held and released: Suspending": ("Starting", "RayJobStopped", "was suspended by somebody else"),
    "is held and released: Suspended": ("Starting", "RayJobStopped", "set its spec.suspend to false"),
    "is held and released: Suspending RUNNING": ("Starting", "RayJobStopped", "was suspended by somebody else"),
    "is tried again: Retrying FAILED AppFailed": ("Starting", "", ""),
    "waits for its user: Waiting": ("Starting", "", ""),
    "loses its head beside the submitter: Failed RUNNING AppFailed": ("Pending", "HeadLost", "the head pod of RayJob"),
    "is deleted: Running RUNNING deleting": ("Pending", "RayJobDeleted", "was deleted while it ran"),
    "the status cannot be asked for any more (1.7)": ("Pending", "HeadLost", "the head pod of RayJob"),
    # The program did not fail, as far as Ray has told.
    "a reason that nobody knows yet": ("Pending", "SubmissionFailed", "words of a later version"),
}
"""Phase, reason and words of a job without a queue that trained, whose RayJob has this shape and whose head lives."""

QUEUED_JOBS = {
    "succeeds: nothing yet": ("Starting", ""),
    "succeeds: Running RUNNING": ("Training", ""),
    "is held and released: Suspending": ("Queued", "WaitingForQuota"),
    "is held and released: Suspended": ("Queued", "WaitingForQuota"),
    "is held and released: Suspending RUNNING": ("Queued", "WaitingForQuota"),
}

PROVISIONING = "HeadPodReady=False/Unknown RayClusterProvisioned=False/RayClusterPodsProvisioning"
HEAD_READY = "HeadPodReady=True/HeadPodRunningAndReady RayClusterProvisioned=False/RayClusterPodsProvisioning"
LATCHED = "RayClusterProvisioned=True/AllPodRunningAndReadyFirstTime"
NO_HEAD = "HeadPodReady=False/HeadPodNotFound RayClusterProvisioned=False/RayClusterPodsProvisioning"
CLUSTERS = {
    "succeeds: nothing yet": ("", False, False, "", ""),
    f"succeeds: {PROVISIONING}": ("", False, False, "", ""),
    f"succeeds: {HEAD_READY}": ("", True, False, "", ""),
    f"succeeds: ready HeadPodReady=True/HeadPodRunningAndReady {LATCHED}": ("ready", True, True, "", ""),
    # The state stays ready, and the pods say that the head is gone.
    f"loses its head: ready HeadPodReady=False/HeadPodNotFound {LATCHED}": ("ready", False, True, "", ""),
    f"has no quota: ReplicaFailure=True/FailedCreateHeadPod {NO_HEAD}": (
        "",
        False,
        False,
        "QuotaExceeded",
        "exceeded quota: few, requested: pods=1, used: pods=0, limited: pods=0",
    ),
    f"has quota for its head: ReplicaFailure=True/FailedCreateWorkerPod {PROVISIONING}": (
        "",
        False,
        False,
        "QuotaExceeded",
        "exceeded quota: few, requested: pods=1, used: pods=1, limited: pods=1",
    ),
    f"has no service account: ReplicaFailure=True/FailedCreateHeadPod {NO_HEAD}": (
        "",
        False,
        False,
        "PodForbidden",
        'serviceaccount "absent" not found',
    ),
    f"cannot pull its image: {PROVISIONING.replace('Unknown', 'ImagePullBackOff')}": ("", False, False, "", ""),
    f"loses its endpoints: ready HeadPodReady=False/ContainersNotReady {LATCHED}": ("ready", False, True, "", ""),
    "pods cannot be deleted for a suspension": ("", False, False, "PodCreationFailed", "denied the request"),
    "the head pod cannot be deleted": ("", False, False, "PodCreationFailed", "denied the request"),
    "a worker pod cannot be deleted": ("", False, False, "PodCreationFailed", "denied the request"),
    "suspending": ("ready", False, True, "", ""),
    "suspended": ("suspended", False, False, "", ""),
}
"""State, head ready, provisioned; reason and words of a job whose pods say nothing."""

STARTING = "Ready=False/Initializing UpgradeInProgress=False/Initializing"
ALONE = "Ready=True/NonZeroServeEndpoints UpgradeInProgress=False/NoPendingCluster"
BOTH = "Ready=True/NonZeroServeEndpoints UpgradeInProgress=True/BothActivePendingClustersExist"
SERVICES = {
    "is served: nothing yet": ("Starting", "", ""),
    f"is served: {STARTING}": ("Starting", "", ""),
    f"is served: {STARTING} pending=DEPLOYING": ("Starting", "", ""),
    "is served: Ready=False/Initializing UpgradeInProgress=False/NoPendingCluster active=RUNNING": ("Starting", "", ""),
    f"is served: {ALONE} active=RUNNING": ("Ready", "", ""),
    # KubeRay goes on calling it ready.
    f"is served: {ALONE} active=UNHEALTHY": ("Degraded", "RuntimeUnhealthy", "a replica failed its health check"),
    f"is served: {BOTH}": ("Updating", "", ""),
    f"is served: {BOTH} pending=DEPLOYING": ("Updating", "", ""),
    f"is served: {BOTH} pending=DEPLOYING deleting": ("Updating", "", ""),
    f"cannot deploy: {STARTING} pending=NOT_STARTED": ("Starting", "", ""),
    f"cannot deploy: {STARTING} pending=DEPLOY_FAILED": ("Starting", "ModelLoadFailed", "it has no tokenizer"),
    f"cannot deploy: {STARTING} pending=DELETING": ("Starting", "", ""),
    f"loses its endpoints: {ALONE}": ("Ready", "", ""),
    "loses its endpoints: Ready=False/ZeroServeEndpoints UpgradeInProgress=False/NoPendingCluster": (
        "Degraded",
        "RuntimeUnhealthy",
        "Number of serve endpoints dropped to 0",
    ),
    "never gets ready: Ready=False/InitializingTimeout UpgradeInProgress=False/Initializing": (
        "Starting",
        "StartupTimeout",
        "KubeRay has given it up: delete it, and it is made anew",
    ),
    "is an invalid service: Ready=False/ValidationFailed": (
        "Failed",
        "RayServiceInvalid",
        "headGroupSpec should have at least one container",
    ),
    "no cluster at all": ("Starting", "", ""),
    "a rollback of an incremental upgrade": ("Updating", "", ""),
}
"""Phase, reason and words of a service whose RayService has this shape; a replica answers while KubeRay says ready."""


def shapes(kind: str) -> dict[str, dict[str, Any]]:
    """By name: those that were recorded, and those that are documented only."""
    recorded: dict[str, dict[str, Any]] = json.loads((FOLDER / f"{kind.lower()}.json").read_text())["shapes"]
    documented = json.loads((FOLDER / DOCUMENTED).read_text())["shapes"]
    metadata = {"name": "tiny-abcde-1", "namespace": "team-a", "labels": {"plinth.dev/attempt": "1"}}
    more = {name: {"metadata": metadata, **shape} for name, shape in documented.items() if shape["kind"] == kind}
    return {**recorded, **more}


def job_status(ray_job: RayJobFacts, *, queue: str | None = None, has_head: bool = True) -> dict[str, Any]:
    """The status of a job that trained in its first attempt until its RayJob became this."""
    started = ray_job.started_at or NOON
    now = (ray_job.ended_at or started) + timedelta(seconds=2)
    document = pretrain_document(
        name="tiny", namespace="team-a", uid=UID, compute={"queueName": queue} if queue else {}
    )
    document["metadata"]["generation"] = 1
    attempt = {"number": 1, "rayJob": ray_job.name, "startedAt": started.isoformat()}
    document["status"] = {"phase": "Training", "attempts": [attempt]}
    head = PodFacts("Pod", "team-a", "head", "uid", UID, 1, role="head", ray_cluster=ray_job.ray_cluster)
    ended = "FINISHED" if ray_job.job_status == "SUCCEEDED" else "RUNNING"
    run = RunFacts("run-1", "1", status=ended, step=12, read_at=now)
    # The recorded one is of another spec; a user has not changed it since.
    ray_job = replace(ray_job, spec_generation=1)
    seen = Observed(ray_jobs=(ray_job,), pods=(head,) if has_head else (), run=run)
    return plan_job(document, seen, settings=SETTINGS, now=now).status


@pytest.mark.parametrize(
    ("kind", "expected"), [("RayJob", JOBS), ("RayCluster", CLUSTERS), ("RayService", SERVICES)], ids=str
)
def test_every_shape_has_its_place_in_the_tables(kind, expected):
    assert set(shapes(kind)) == set(expected)


@pytest.mark.parametrize("name", JOBS)
def test_a_rayjob_becomes_phase_reason_and_words(name):
    facts = facts_from(shapes("RayJob")[name])
    assert isinstance(facts, RayJobFacts)
    status = job_status(facts)
    phase, reason, words = JOBS[name]
    assert (status["phase"], status.get("reason", "")) == (phase, reason)
    assert words in status.get("message", "")
    assert reason in {"", *REASONS}
    assert bool(reason) == bool(status.get("message"))


@pytest.mark.parametrize("name", QUEUED_JOBS)
def test_a_rayjob_that_a_queue_holds_waits_for_it(name):
    facts = facts_from(shapes("RayJob")[name])
    assert isinstance(facts, RayJobFacts)
    status = job_status(facts, queue="team-a")
    assert (status["phase"], status.get("reason", "")) == QUEUED_JOBS[name]


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_raycluster_becomes_facts_and_a_cause(name):
    facts = facts_from(shapes("RayCluster")[name])
    assert isinstance(facts, RayClusterFacts)
    state, head_ready, provisioned, reason, words = CLUSTERS[name]
    assert (facts.state, facts.head_ready, facts.provisioned) == (state, head_ready, provisioned)
    cause = waiting_cause((), [facts], ())
    assert (cause.reason if cause else "") == reason
    assert words in (cause.message if cause else "")


@pytest.mark.parametrize("name", SERVICES)
def test_a_rayservice_becomes_phase_reason_and_words(name):
    facts = facts_from(shapes("RayService")[name])
    assert isinstance(facts, RayServiceFacts)
    replica = ReplicaState(TARGET, TARGET, "", NOON) if facts.ready else None
    verdict = service_verdict(facts, (), (), replica, ServeModel(uri=TARGET), replacing=False)
    phase, reason, words = SERVICES[name]
    assert (verdict.phase, verdict.cause.reason if verdict.cause else "") == (phase, reason)
    assert words in (verdict.cause.message if verdict.cause else "")
    assert verdict.answering is facts.ready


def test_the_recordings_are_of_the_kuberay_that_the_tests_run():
    pinned = (Path(__file__).parents[3] / "cluster" / "modules" / "kuberay" / "go.mod").read_text()
    for kind in ("RayJob", "RayCluster", "RayService"):
        told = json.loads((FOLDER / f"{kind.lower()}.json").read_text())["recordedFrom"]
        assert f"kuberay/ray-operator {told.removeprefix('KubeRay ')} " in pinned


def test_a_job_that_kuberay_calls_running_is_over_when_its_head_is_gone():
    facts = facts_from(shapes("RayJob")["succeeds: Running RUNNING"])
    assert isinstance(facts, RayJobFacts)
    status = job_status(facts, has_head=False)
    assert (status["phase"], status["reason"]) == ("Pending", "HeadLost")
    assert f"the head pod of RayCluster {facts.ray_cluster} is gone" in status["message"]
