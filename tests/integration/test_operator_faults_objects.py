"""Children deleted or edited by hand, resources deleted in every phase, KubeRay that comes late."""

import json
import time
import urllib.error

import pytest

from cluster.control_plane import ControlPlane, wait_until
from lives import CHILDREN, CRASHED, NETWORKING, RAY, RUNNING, SUCCEEDED, picture, tell_ray_jobs
from makers import pretrain_document, service_document
from namespaces import Namespace
from operators import operator_behind_proxies

pytestmark = pytest.mark.integration

MODEL = {"uri": "models:/tiny/1"}
PASSED = {"gate": "Passed", "modelName": "tiny", "modelVersion": "3", "phase": "finished"}


def test_what_a_running_job_needs_is_put_right_when_it_is_deleted_or_edited(cluster, runs):
    cluster.claim("plinth")
    made = cluster.create(pretrain_document())
    cluster.wait_status(made, phase="Starting", reason="Unschedulable")
    before = picture(cluster, made, runs)
    name = f"tiny-{made['metadata']['uid'][:5]}"
    config = cluster.path("", "configmaps", f"{name}-1")
    policy = cluster.path(NETWORKING, "networkpolicies", name)

    def is_as_before():
        return picture(cluster, made, runs) == before

    for path in (config, policy):
        cluster.plane.request("DELETE", path)
        wait_until(is_as_before, 60, f"{path} to be back")
    for edit in ({"spec": {"ingress": []}}, {"spec": {"podSelector": {"matchLabels": {"app": "other"}}}}):
        cluster.patch(policy, edit)
        wait_until(is_as_before, 60, f"our NetworkPolicy instead of {edit}")
    with pytest.raises(urllib.error.HTTPError, match="422"):
        cluster.patch(config, {"data": {"run.json": "{}"}})


def test_what_a_service_needs_is_put_right_when_it_is_deleted(cluster, runs):
    document = service_document(model=MODEL, access={"ingress": {"host": "tiny.example.com"}})
    made = cluster.create(document)
    cluster.wait_status(made, phase="Starting", reason="Unschedulable")
    before = picture(cluster, made, runs)
    name = f"tiny-{made['metadata']['uid'][:5]}"
    for group, plural in ((NETWORKING, "networkpolicies"), (NETWORKING, "ingresses"), (RAY, "rayservices")):
        path = cluster.path(group, plural, name)
        uid = cluster.plane.request("GET", path)["metadata"]["uid"]
        cluster.plane.request("DELETE", path)
        wait_until(lambda path=path, uid=uid: uid_at(cluster, path) not in ("", uid), 60, f"another {path}")
    cluster.patch(cluster.path(NETWORKING, "ingresses", name), {"spec": {"rules": None, "defaultBackend": BACKEND}})
    wait_until(lambda: without_backend(picture(cluster, made, runs)) == before, 60, "our Ingress")


BACKEND = {"service": {"name": "other", "port": {"number": 1}}}


def without_backend(found):
    """A field that we do not set stays as it was set by others."""
    found["children"]["ingresses"][0]["content"].pop("defaultBackend", None)
    return found


def uid_at(cluster, path):
    try:
        return cluster.plane.request("GET", path)["metadata"]["uid"]
    except urllib.error.HTTPError:
        return ""


def reach(cluster, runs, phase):
    """A resource in a phase, each of another name."""
    if phase.startswith("service"):
        made = cluster.create(service_document(name=phase, model=MODEL))
        cluster.wait_status(made, phase="Starting")
        return made
    claims = {"checkpoint": {"uri": "pvc://missing/here"}} if phase == "pending" else {}
    made = cluster.create(pretrain_document(name=phase, suspend=phase == "new-suspended", **claims))
    uid = made["metadata"]["uid"]
    if phase in ("pending", "new-suspended"):
        cluster.wait_status(made, phase={"pending": "Pending", "new-suspended": "Suspended"}[phase])
        return made
    # KubeRay has made the pods: a job that runs without a head has lost it.
    cluster.wait_status(made, phase="Starting", reason="Unschedulable")
    if phase == "suspended":
        cluster.merge(made, {"spec": {"suspend": True}})
    elif phase == "training":
        runs.tell(uid, "train/loss", 2.5, step=3)
        tell_ray_jobs(cluster, RUNNING, phase)
    elif phase == "succeeded":
        runs.finish(uid, **PASSED)
        tell_ray_jobs(cluster, SUCCEEDED, phase)
    elif phase == "failed":
        tell_ray_jobs(cluster, CRASHED, phase)
    cluster.wait_status(made, phase=phase.capitalize(), seconds=90)
    return made


PHASES = {
    "pending": [],
    "new-suspended": [],
    "starting": ["KILLED"],
    "training": ["KILLED"],
    "suspended": ["KILLED"],
    "succeeded": ["FINISHED"],
    "failed": ["FAILED"],
    "service-starting": [],
}


def test_whatever_phase_it_is_deleted_in_nothing_of_a_resource_stays(cluster, disturbed, runs):
    cluster.claim("plinth")
    made = {phase: reach(cluster, runs, phase) for phase in PHASES}
    for document in made.values():
        cluster.delete(document)

    def left():
        kinds = (*CHILDREN, (RAY, "rayclusters"))
        found = [item["metadata"]["name"] for group, plural in kinds for item in cluster.items(group, plural)]
        return [name for name in found if name != "kube-root-ca.crt"]

    wait_until(lambda: not left(), 90, "the end of every child")
    for phase, states in PHASES.items():
        uid = made[phase]["metadata"]["uid"]
        wait_until(lambda uid=uid, states=states: runs.states(uid) == states, 30, f"the run of {phase} to be {states}")
    started = len(disturbed.api.log)
    log = len(disturbed.operator.log.read_text())
    time.sleep(5)
    assert [entry.path for entry in disturbed.api.log[started:] if cluster.name in entry.path] == []
    assert cluster.name not in disturbed.operator.log.read_text()[log:]
    assert "Traceback" not in disturbed.operator.log.read_text()


def test_a_namespace_that_is_deleted_with_all_that_is_in_it_leaves_no_work(control_plane, disturbed, runs):
    cluster = Namespace(control_plane, control_plane.create_namespace(), disturbed.operator.log)
    cluster.claim("plinth")
    job, service = cluster.create(pretrain_document()), cluster.create(service_document(model=MODEL))
    for made in (job, service):
        cluster.wait_status(made, phase="Starting")
    control_plane.delete_namespace(cluster.name)
    wait_until(lambda: not uid_at(cluster, f"/api/v1/namespaces/{cluster.name}"), 90, "the end of the namespace")
    wait_until(lambda: runs.states(job["metadata"]["uid"]) == ["KILLED"], 30, "the end of the job's run")
    started = len(disturbed.api.log)
    time.sleep(4)
    assert [entry.path for entry in disturbed.api.log[started:] if cluster.name in entry.path] == []


def test_a_job_that_is_made_again_under_its_name_is_another_job(cluster, runs):
    cluster.claim("plinth")
    first = cluster.create(pretrain_document())
    cluster.wait_status(first, phase="Starting")
    cluster.delete(first)
    second = cluster.create(pretrain_document())
    status = cluster.wait_status(second, phase="Starting")
    uid = second["metadata"]["uid"]
    wait_until(lambda: cluster.ray_jobs() == [f"tiny-{uid[:5]}-1"], 60, "one RayJob, of the second job")
    assert [attempt["number"] for attempt in status["attempts"]] == [1]
    assert [run["info"]["run_id"] for run in runs.of(uid)] == [status["tracking"]["runId"]]
    wait_until(lambda: runs.states(first["metadata"]["uid"]) == ["KILLED"], 30, "the end of the first job's run")


def test_what_needs_kuberay_waits_for_it_and_goes_on_whenever_it_is_installed(tmp_path, tracking):
    with ControlPlane(tmp_path / "plane", crds=("plinth",), scheduler=False) as plane:
        namespace = plane.create_namespace()
        with operator_behind_proxies(tmp_path, plane, tracking.uri, namespace=namespace) as disturbed:
            cluster = Namespace(plane, namespace, disturbed.operator.log)
            cluster.claim("plinth")
            job = cluster.create(pretrain_document())
            service = cluster.create(service_document(model=MODEL))
            for made in (job, service):
                status = cluster.wait_status(made, phase="Pending", reason="KubeRayMissing", seconds=90)
                assert "KubeRay" in status["message"]
            policies = cluster.items(NETWORKING, "networkpolicies")
            assert (policies, len(cluster.items("", "configmaps"))) == ([], 1), json.dumps(policies)
            plane.install_kuberay_crds()
            for made in (job, service):
                cluster.wait_status(made, phase="Starting", seconds=90)
            assert len(cluster.ray_jobs()) == len(cluster.items(RAY, "rayservices")) == 1
            # And what happens to its kinds from then on is heard.
            tell_ray_jobs(cluster, CRASHED)
            cluster.wait_status(job, phase="Failed", seconds=90)
            plane.remove_kuberay_crds()
            # Where the watch is refused before it tells the end of the RayService, it may still be there: an API server
            # that starts serves no kinds of others for a moment either, and nothing is taken for lost until it does.
            status = cluster.wait_status(service, reason="KubeRayMissing", seconds=90)
            assert status["phase"] in ("Pending", "Degraded")
            assert cluster.get(job)["status"]["phase"] == "Failed"
            plane.install_kuberay_crds()
            cluster.wait_status(service, phase="Starting", seconds=90)
