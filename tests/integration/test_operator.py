"""The operator on a real API server with the real KubeRay and a real MLflow: from a resource to its Ray objects."""

import json
import time
import urllib.error

import mlflow
import pytest

from cluster.control_plane import wait_until
from makers import fine_tune_document, pretrain_document, service_document

pytestmark = pytest.mark.integration

DATA = {"train": [{"uri": "pvc://corpora/corpus.jsonl"}], "validation": {"fraction": 0.1}}
CHECKPOINT = {"uri": "pvc://checkpoints/tiny"}


def register(client, name, versions=1):
    client.create_registered_model(name)
    for _ in range(versions):
        run = client.create_run("0")
        client.create_model_version(name, source=f"runs:/{run.info.run_id}/model", run_id=run.info.run_id)


def pretrain(**spec):
    return pretrain_document(data=DATA, checkpoint=CHECKPOINT, **spec)


def test_a_job_gets_its_ray_objects_its_run_and_an_honest_status(cluster, tracking):
    cluster.claim("corpora", "checkpoints")
    made = cluster.create(pretrain())
    status = cluster.wait_status(pretrain(), phase="Starting", reason="Unschedulable")
    uid = made["metadata"]["uid"]
    (ray_job,) = cluster.items("ray.io/v1", "rayjobs")
    assert ray_job["metadata"]["name"] == f"tiny-{uid[:5]}-1"
    assert ray_job["metadata"]["ownerReferences"][0]["uid"] == uid
    document = json.loads(cluster.items("", "configmaps")[-1]["data"]["run.json"])
    assert document["tracking"]["runId"] == status["tracking"]["runId"]
    run = mlflow.MlflowClient(tracking.uri, tracking.uri).get_run(status["tracking"]["runId"])
    assert run.data.tags["plinth.uid"] == uid
    assert "nodes" in status["message"]
    assert [attempt["rayJob"] for attempt in status["attempts"]] == [ray_job["metadata"]["name"]]
    assert len(cluster.items("networking.k8s.io/v1", "networkpolicies")) == 1


def test_what_does_not_exist_yet_holds_the_job_and_nothing_is_created(cluster):
    cluster.create(pretrain())
    status = cluster.wait_status(pretrain(), phase="Pending", reason="VolumeNotFound")
    assert "checkpoints" in status["message"]
    assert cluster.ray_jobs() == []
    cluster.claim("corpora", "checkpoints")
    cluster.wait_status(pretrain(), phase="Starting")
    assert len(cluster.ray_jobs()) == 1


def test_an_alias_that_is_missing_holds_a_fine_tuning_until_it_is_there(cluster, tracking):
    cluster.claim("corpora", "checkpoints")
    document = fine_tune_document(model={"uri": "models:/base@champion"}, data=DATA, checkpoint=CHECKPOINT)
    cluster.create(document)
    status = cluster.wait_status(document, phase="Pending", reason="ModelNotFound")
    assert f"models:/{cluster.name}.base@champion" in status["message"]
    client = mlflow.MlflowClient(tracking.uri, tracking.uri)
    name = f"{cluster.name}.base"
    register(client, name)
    client.set_registered_model_alias(name, "champion", "1")
    cluster.wait_status(document, phase="Starting")
    run = json.loads(cluster.items("", "configmaps")[-1]["data"]["run.json"])
    assert run["model"]["uri"] == f"models:/{name}/1"


def test_a_spec_that_cannot_work_is_refused_with_the_path_of_the_field(cluster):
    document = pretrain(training={"globalBatchSize": 7}, compute={"workers": 2})
    cluster.create(document)
    status = cluster.wait_status(document, phase="Failed", reason="InvalidSpec")
    assert "spec.training.globalBatchSize" in status["message"]
    accepted = next(found for found in status["conditions"] if found["type"] == "Accepted")
    assert accepted["status"] == "False"
    assert cluster.ray_jobs() == []
    cluster.claim("corpora", "checkpoints")
    cluster.merge(document, {"spec": {"training": {"globalBatchSize": 8}}})
    cluster.wait_status(document, phase="Starting")


def test_a_volume_of_one_node_is_refused_for_several_workers(cluster):
    cluster.claim("corpora")
    cluster.claim("checkpoints", mode="ReadWriteOnce")
    document = pretrain(compute={"workers": 2})
    cluster.create(document)
    status = cluster.wait_status(document, phase="Failed", reason="InvalidSpec")
    assert "ReadWriteMany" in status["message"]


def test_a_suspended_job_frees_its_machines_and_goes_on_as_the_next_attempt(cluster):
    cluster.claim("corpora", "checkpoints")
    cluster.create(pretrain())
    cluster.wait_status(pretrain(), phase="Starting")
    cluster.merge(pretrain(), {"spec": {"suspend": True}})
    status = cluster.wait_status(pretrain(), phase="Suspended")
    assert status["attempts"][0]["outcome"] == "Suspended"
    wait_until(lambda: cluster.ray_jobs() == [], 30, "the end of the RayJob")
    cluster.merge(pretrain(), {"spec": {"suspend": False}})
    status = cluster.wait_status(pretrain(), phase="Starting")
    assert [attempt["number"] for attempt in status["attempts"]] == [1, 2]
    assert [name[-2:] for name in cluster.ray_jobs()] == ["-2"]


def test_a_rayjob_deleted_by_hand_ends_its_attempt_and_the_next_one_starts(cluster):
    cluster.claim("corpora", "checkpoints")
    cluster.create(pretrain())
    cluster.wait_status(pretrain(), phase="Starting")
    (name,) = cluster.ray_jobs()
    cluster.plane.request("DELETE", cluster.path("ray.io/v1", "rayjobs", name))
    status = cluster.wait_status(pretrain(), phase="Pending", reason="RayJobDeleted")
    assert status["attempts"][0]["outcome"] == "RayJobDeleted"
    status = cluster.wait_status(pretrain(), phase="Starting")
    assert len(status["attempts"]) == 2


def test_nothing_happens_when_nothing_changes(cluster, disturbed):
    cluster.claim("corpora", "checkpoints")
    cluster.create(pretrain())
    cluster.wait_status(pretrain(), phase="Starting", reason="Unschedulable")
    wait_until(
        lambda: time.monotonic() - disturbed.api.writes(cluster.name)[-1].time > 2, 60, "what follows a transition"
    )
    written = disturbed.api.writes(cluster.name)
    time.sleep(8)
    assert disturbed.api.writes(cluster.name) == written


def test_a_deleted_job_leaves_nothing_behind_and_its_run_is_ended(cluster, tracking):
    cluster.claim("corpora", "checkpoints")
    cluster.create(pretrain())
    status = cluster.wait_status(pretrain(), phase="Starting")
    cluster.delete(pretrain())
    wait_until(lambda: cluster.ray_jobs() == [], 60, "the end of the RayJob")
    client = mlflow.MlflowClient(tracking.uri, tracking.uri)
    run_id = status["tracking"]["runId"]
    wait_until(lambda: client.get_run(run_id).info.status == "KILLED", 30, "the end of the MLflow run")


def test_a_finished_job_keeps_its_state_when_its_children_are_gone(cluster, tracking):
    cluster.claim("corpora", "checkpoints")
    cluster.create(pretrain())
    status = cluster.wait_status(pretrain(), phase="Starting")
    client = mlflow.MlflowClient(tracking.uri, tracking.uri)
    run_id = status["tracking"]["runId"]
    for tag, value in {"gate": "Passed", "modelName": "team.tiny", "modelVersion": "3", "phase": "finished"}.items():
        client.set_tag(run_id, f"plinth.{tag}", value)
    client.set_terminated(run_id, "FINISHED")
    (name,) = cluster.ray_jobs()
    # KubeRay leaves a RayJob alone that has reached its end.
    done = {"status": {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}}
    cluster.patch(cluster.path("ray.io/v1", "rayjobs", name) + "/status", done)
    status = cluster.wait_status(pretrain(), phase="Succeeded")
    assert status["model"] == {"name": "team.tiny", "version": "3", "uri": "models:/team.tiny/3"}
    cluster.plane.request("DELETE", cluster.path("ray.io/v1", "rayjobs", name))
    wait_until(lambda: cluster.ray_jobs() == [], 30, "the end of the RayJob")
    time.sleep(1)
    assert cluster.get(pretrain())["status"]["phase"] == "Succeeded"
    assert cluster.ray_jobs() == []


def test_a_failed_program_is_final_and_says_what_the_program_said(cluster):
    cluster.claim("corpora", "checkpoints")
    cluster.create(pretrain())
    cluster.wait_status(pretrain(), phase="Starting")
    (name,) = cluster.ray_jobs()
    record = json.dumps({"plinth": "failure", "reason": "DatasetNotFound", "message": "no file matches corpus.jsonl"})
    message = f"Job entrypoint command failed with exit code 1, last available logs:\nsome line\n{record}\n"
    ended = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": message}
    cluster.patch(cluster.path("ray.io/v1", "rayjobs", name) + "/status", {"status": ended})
    status = cluster.wait_status(pretrain(), phase="Failed", reason="DatasetNotFound")
    assert status["message"] == "no file matches corpus.jsonl"
    assert len(status["attempts"]) == 1


def test_a_service_gets_a_ray_service_and_follows_its_alias_in_place(cluster, tracking):
    client = mlflow.MlflowClient(tracking.uri, tracking.uri)
    name = f"{cluster.name}.tiny-chat"
    register(client, name, versions=2)
    client.set_registered_model_alias(name, "champion", "1")
    cluster.create(service_document())
    cluster.wait_status(service_document(), phase="Starting")
    (service,) = cluster.items("ray.io/v1", "rayservices")
    assert f"models:/{name}/1" in service["spec"]["serveConfigV2"]
    # A hand edit of a field that is ours is put right.
    path = cluster.path("ray.io/v1", "rayservices", service["metadata"]["name"])
    cluster.patch(path, {"spec": {"serveConfigV2": "applications: []"}})
    wait_until(lambda: "models:/" in cluster.plane.request("GET", path)["spec"]["serveConfigV2"], 30, "our config")
    client.set_registered_model_alias(name, "champion", "2")
    wait_until(
        lambda: f"models:/{name}/2" in cluster.plane.request("GET", path)["spec"]["serveConfigV2"], 60, "version 2"
    )
    assert len(cluster.items("ray.io/v1", "rayservices")) == 1
    assert cluster.get(service_document())["status"]["phase"] == "Starting"


def test_the_probes_tell_health_and_numbers(cluster, disturbed):
    wait_until(lambda: "leading as" in disturbed.operator.log.read_text(), 60, "it to lead")
    assert disturbed.operator.get("/healthz") == "ok"
    assert "plinth_reconciles_total" in disturbed.operator.get("/metrics")
    with pytest.raises(urllib.error.HTTPError):
        disturbed.operator.get("/nothing")
