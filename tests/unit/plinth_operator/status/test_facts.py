"""From manifests to facts."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from plinth_operator.facts import ApplicationFacts, ClaimFacts, ObjectFacts, PodFacts, RayClusterFacts
from plinth_operator.status.claims import facts_from_claim
from plinth_operator.status.facts import facts_from
from plinth_operator.status.kueue import facts_from_workload
from plinth_operator.status.objects import object_facts
from plinth_operator.status.pods import facts_from_pod
from plinth_operator.status.raycluster import facts_from_raycluster
from plinth_operator.status.rayjob import facts_from_rayjob
from plinth_operator.status.rayservice import facts_from_rayservice
from plinth_operator.status.reading import timestamp, whole
from unit.plinth_operator.status.manifests import (
    CLUSTER,
    RAY_JOB,
    UID,
    application,
    container,
    disrupted,
    failed_ray_job,
    kueue_condition,
    metadata,
    pod,
    ray_cluster,
    ray_job,
    ray_service,
    replica_failure,
    terminated,
    unschedulable,
    waiting,
    workload,
)

KINDS = ["ConfigMap", "Pod", "RayJob", "RayCluster", "RayService", "Workload", "PersistentVolumeClaim", "Ingress"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rest",
    [
        {},
        {"metadata": None, "spec": None, "status": None},
        {"metadata": {"labels": None, "ownerReferences": None}, "status": {"conditions": None, "failed": None}},
        {"metadata": [], "spec": "x", "status": {"conditions": ["x"], "containerStatuses": [None]}},
    ],
    ids=["nothing", "nulls", "nulls inside", "other types"],
)
def test_a_manifest_without_its_fields_has_facts_without_values(kind, rest):
    facts = facts_from({"kind": kind, **rest})
    empty = type(facts)(kind, "", "", "", "", 0, spec=facts.spec)
    assert facts == (replace(empty, role="submitter") if isinstance(empty, PodFacts) else empty)
    assert facts.spec in ("", "{}")


def test_every_object_has_its_names_and_our_marks():
    manifest: dict[str, Any] = {
        "kind": "ConfigMap",
        "metadata": metadata("run-1", annotations={"plinth.dev/hash": "h1", "plinth.dev/spec-hash": "s1"}),
    }
    expected = ObjectFacts(
        kind="ConfigMap",
        namespace="team-a",
        name="run-1",
        uid="uid-of-run-1",
        owner_uid=UID,
        resource_version=48213,
        created_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
        hash="h1",
        spec_hash="s1",
    )
    assert object_facts(manifest) == expected
    manifest["metadata"]["deletionTimestamp"] = "2026-03-01T12:20:00Z"
    assert facts_from(manifest).deleting


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-03-01T12:00:00Z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01T12:00:00.250000Z", datetime(2026, 3, 1, 12, 0, 0, 250000, tzinfo=UTC)),
        ("2026-03-01T14:00:00+02:00", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01T12:00:00", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("soon", None),
        (None, None),
    ],
    ids=["of Kubernetes", "with fractions", "of another zone", "without a zone is UTC", "no time", "missing"],
)
def test_a_time_is_read_with_its_zone(written, expected):
    found = timestamp({"at": written}, "at")
    assert found == expected
    assert found is None or found.utcoffset() is not None


@pytest.mark.parametrize(("written", "expected"), [("48213", 48213), (7, 7), ("opaque", 0), ([], 0), (None, 0)])
def test_a_number_that_is_none_reads_as_zero(written, expected):
    assert whole({"n": written}, "n") == expected


def test_a_ray_job_that_runs():
    facts = facts_from_rayjob(ray_job())
    assert (facts.name, facts.attempt, facts.owner_uid, facts.spec_hash) == (RAY_JOB, 1, UID, "s1")
    assert (facts.deployment_status, facts.job_status, facts.ray_cluster) == ("Running", "RUNNING", CLUSTER)
    assert facts.started_at == datetime(2026, 3, 1, 12, 0, 3, tzinfo=UTC)
    assert facts.ended_at is None
    assert not facts.suspended


def test_a_ray_job_that_is_over_and_one_that_kueue_holds():
    facts = facts_from_rayjob(failed_ray_job(message="Job failed"))
    assert (facts.reason, facts.message, facts.job_status) == ("AppFailed", "Job failed", "FAILED")
    assert facts.ended_at is not None
    assert facts.started_at is not None
    assert facts.ended_at - facts.started_at > timedelta(minutes=29)
    assert facts_from_rayjob(ray_job(spec={"suspend": True}, jobDeploymentStatus="Suspended")).suspended


def test_a_ray_cluster_knows_the_ray_job_that_owns_it():
    facts = facts_from(ray_cluster())
    assert isinstance(facts, RayClusterFacts)
    assert (facts.owner_name, facts.owner_uid, facts.state) == (RAY_JOB, UID, "ready")
    assert (facts.head_ready, facts.provisioned, facts.ready_workers, facts.desired_workers) == (True, True, 2, 2)
    assert facts.failure == ""


def test_a_ray_cluster_without_our_label_is_ours_by_its_pod_template():
    assert facts_from_raycluster(ray_cluster(labels={})).owner_uid == UID
    foreign = ray_cluster(labels={})
    foreign["spec"] = {}
    assert facts_from_raycluster(foreign).owner_uid == ""
    assert facts_from_raycluster(foreign).owner_name == RAY_JOB


def test_a_ray_cluster_tells_why_its_pods_cannot_be_made_only_while_that_is_so():
    message = 'failed to create worker pod: pods "x" is forbidden: exceeded quota: gpus'
    assert facts_from_raycluster(replica_failure(message)).failure == message
    over = ray_cluster(conditions=[{"type": "ReplicaFailure", "status": "False", "message": message}])
    assert facts_from_raycluster(over).failure == ""


@pytest.mark.parametrize(("role", "cluster"), [("head", CLUSTER), ("worker", CLUSTER), ("submitter", "")])
def test_the_role_of_a_pod_is_kuberays_node_type_and_the_submitter_has_none(role, cluster):
    facts = facts_from(pod(role))
    assert isinstance(facts, PodFacts)
    assert (facts.role, facts.ray_cluster, facts.owner_uid) == (role, cluster, UID)
    assert (facts.phase, facts.node, facts.ready) == ("Running", "node-7", True)


def test_a_pod_without_a_node_has_the_schedulers_words():
    words = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    facts = facts_from_pod(unschedulable(words))
    assert (facts.unschedulable, facts.node, facts.ready) == (words, "", False)
    gated = pod(
        conditions=[{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "gated"}]
    )
    assert facts_from_pod(gated).unschedulable == ""


def test_a_pod_that_was_disrupted_or_evicted_says_by_what():
    assert facts_from_pod(disrupted("PreemptionByScheduler")).disruption == "PreemptionByScheduler"
    evicted = facts_from_pod(pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory."))
    assert (evicted.reason, evicted.message) == ("Evicted", "The node was low on resource: memory.")
    spared = [{"type": "DisruptionTarget", "status": "False", "reason": "PreemptionByScheduler"}]
    assert facts_from_pod(pod(conditions=spared)).disruption == ""


def only_container(status):
    return facts_from_pod(pod(containers=[status])).containers[0]


def test_a_container_that_waits_for_its_image():
    facts = only_container(container(state=waiting("ImagePullBackOff", 'Back-off pulling image "plinth-workloads:1"')))
    assert (facts.waiting, facts.terminated, facts.exit_code) == ("ImagePullBackOff", "", None)
    assert facts.message == 'Back-off pulling image "plinth-workloads:1"'
    assert facts.image == "plinth-workloads:1"


def test_a_container_in_its_back_off_tells_how_its_last_run_ended():
    status = container(
        state=waiting("CrashLoopBackOff", "back-off 5m0s restarting failed container"),
        last=terminated(2, "Error", "no such file"),
        restartCount=5,
    )
    facts = only_container(status)
    assert (facts.waiting, facts.terminated, facts.exit_code) == ("CrashLoopBackOff", "Error", 2)
    assert (facts.message, facts.restarts) == ("no such file", 5)


def test_a_container_that_ran_before_and_now_waits_for_its_image_tells_of_the_image():
    facts = only_container(container(state=waiting("ErrImagePull", "not found"), last=terminated(137, "OOMKilled")))
    assert (facts.waiting, facts.message) == ("ErrImagePull", "not found")


def test_a_container_that_ended_and_one_that_runs_again():
    ended = only_container(container(state=terminated(1, None)))
    assert (ended.terminated, ended.exit_code, ended.last_terminated) == ("Error", 1, "")
    again = only_container(
        container(
            state={"running": {"startedAt": "2026-03-01T12:00:00Z"}}, last=terminated(137, "OOMKilled"), ready=True
        )
    )
    assert (again.terminated, again.exit_code, again.last_terminated, again.ready) == ("", None, "OOMKilled", True)


def test_init_containers_come_first():
    init = [container("wait-gcs-ready", state=terminated(0, "Completed"))]
    facts = facts_from_pod(pod(init=init, containers=[container(state=waiting("PodInitializing"))]))
    assert [c.name for c in facts.containers] == ["wait-gcs-ready", "ray-worker"]


NO_QUOTA = kueue_condition("QuotaReserved", "False", "Pending", "insufficient unused quota for cpu in flavor default")
QUOTA = kueue_condition("QuotaReserved", "True", "QuotaReserved", "Quota reserved in ClusterQueue research")
EVICTED = kueue_condition("Evicted", "True", "Preempted", "Preempted to accommodate a workload")


@pytest.mark.parametrize(
    ("manifest", "admitted", "evicted", "message"),
    [
        (workload(), False, "", ""),
        (workload(NO_QUOTA), False, "", NO_QUOTA["message"]),
        (
            workload(QUOTA, kueue_condition("Admitted", "False", "NoChecks", "The workload has not all checks ready")),
            False,
            "",
            "The workload has not all checks ready",
        ),
        (
            workload(
                QUOTA,
                kueue_condition("Admitted", "True"),
                kueue_condition("PodsReady", "False", "WaitForStart", "Not all pods are ready or succeeded"),
            ),
            True,
            "",
            "Not all pods are ready or succeeded",
        ),
        (workload(EVICTED), False, "Preempted", EVICTED["message"]),
        (workload(NO_QUOTA, EVICTED), False, "Preempted", NO_QUOTA["message"]),
        (workload(QUOTA, kueue_condition("Admitted", "True"), {**EVICTED, "status": "False"}), True, "", ""),
    ],
    ids=["new", "no quota", "checks", "pods", "evicted", "evicted and queued again", "admitted again"],
)
def test_a_workload_tells_what_it_waits_for(manifest, admitted, evicted, message):
    facts = facts_from_workload(manifest)
    assert (facts.owner_name, facts.admitted, facts.evicted, facts.message) == (RAY_JOB, admitted, evicted, message)
    assert not facts.inactive


def test_a_workload_that_was_deactivated():
    assert facts_from_workload(workload(active=False)).inactive
    assert not facts_from_workload(workload(active=True)).inactive


def test_the_spec_is_kept_of_the_kinds_whose_hand_edits_are_undone():
    assert facts_from(ray_service()).spec == '{"serveConfigV2": "applications: []\\n"}'
    assert facts_from(ray_job()).spec == ""


def test_a_claim_tells_how_it_is_mounted():
    claim = {
        "kind": "PersistentVolumeClaim",
        "metadata": metadata("corpora"),
        "spec": {"accessModes": ["ReadWriteMany"]},
        "status": {"phase": "Bound", "accessModes": ["ReadWriteOnce"]},
    }
    facts = facts_from(claim)
    assert isinstance(facts, ClaimFacts)
    assert (facts.phase, facts.access_modes) == ("Bound", ("ReadWriteOnce",))
    assert facts_from_claim({**claim, "status": {"phase": "Pending"}}).access_modes == ("ReadWriteMany",)


def test_a_service_with_its_application_in_two_clusters():
    sick = {"plinth": {"status": "UNHEALTHY", "message": "replica died"}, "well": {"status": "HEALTHY", "message": "x"}}
    manifest = ray_service(
        active=application("RUNNING", cluster="c-1"),
        pending=application("DEPLOYING", "starting", deployments=sick, cluster="c-2"),
    )
    facts = facts_from_rayservice(manifest)
    assert (facts.cluster_hash, facts.generation, facts.observed_generation, facts.endpoints) == ("c1", 3, 3, 1)
    assert (facts.ready, facts.ready_reason, facts.ready_message) == (True, "NonZeroServeEndpoints", "1 of 1")
    assert facts.serve_config == "applications: []\n"
    assert facts.active == ApplicationFacts("c-1", "RUNNING", "")
    assert facts.pending == ApplicationFacts("c-2", "DEPLOYING", "starting; plinth: replica died", "UNHEALTHY")


def test_of_several_applications_the_one_that_is_not_well_is_told():
    apps = {"a": {"status": "RUNNING"}, "b": {"status": "DEPLOY_FAILED", "message": "no module"}}
    facts = facts_from_rayservice(ray_service(active={"rayClusterName": "c-1", "applicationStatuses": apps}))
    assert facts.active == ApplicationFacts("c-1", "DEPLOY_FAILED", "no module")
    assert facts.pending is None
    empty = facts_from_rayservice(ray_service(active={"rayClusterName": "c-1"}))
    assert empty.active == ApplicationFacts("c-1", "", "")
