"""The operator on a real API server with the real KubeRay and a real MLflow: from a resource to its Ray objects."""

import json
import time
import urllib.error

import mlflow
import pytest

from cluster.control_plane import wait_until
from makers import fine_tune_document, pretrain_document, service_document
from operators import OperatorProcess
from servers import MlflowServer

pytestmark = pytest.mark.integration

PLURALS = {"PretrainJob": "pretrainjobs", "FineTuneJob": "finetunejobs", "ModelService": "modelservices"}
DATA = {"train": [{"uri": "pvc://corpora/corpus.jsonl"}], "validation": {"fraction": 0.1}}
CHECKPOINT = {"uri": "pvc://checkpoints/tiny"}


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def operator(tmp_path_factory, control_plane, tracking):
    process = OperatorProcess(tmp_path_factory.mktemp("operator"), control_plane.kubeconfig, tracking.uri).start()
    yield process
    process.kill()


@pytest.fixture
def cluster(control_plane, namespace, operator):
    return Cluster(control_plane, namespace, operator)


class Cluster:
    """One namespace, with the verbs that the tests need."""

    def __init__(self, plane, name, operator):
        self.plane, self.namespace, self.operator = plane, name, operator

    def path(self, group, plural, name=""):
        base = f"/apis/{group}/namespaces/{self.namespace}/{plural}" if group else ""
        base = base or f"/api/v1/namespaces/{self.namespace}/{plural}"
        return f"{base}/{name}" if name else base

    def items(self, group, plural):
        return self.plane.request("GET", self.path(group, plural))["items"]

    def claim(self, *names, mode="ReadWriteMany"):
        for name in names:
            spec = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
            meta = {"name": name, "namespace": self.namespace}
            self.plane.apply(
                {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}, self.namespace
            )

    def create(self, document):
        document["metadata"]["namespace"] = self.namespace
        path = self.path("plinth.dev/v1alpha1", PLURALS[document["kind"]])
        return self.plane.request("POST", path, json.dumps(document).encode())

    def get(self, document):
        path = self.path("plinth.dev/v1alpha1", PLURALS[document["kind"]], document["metadata"]["name"])
        return self.plane.request("GET", path)

    def merge(self, document, patch, status=False):
        path = self.path("plinth.dev/v1alpha1", PLURALS[document["kind"]], document["metadata"]["name"])
        return self.patch(path + ("/status" if status else ""), patch)

    def patch(self, path, patch):
        return self.plane.request("PATCH", path, json.dumps(patch).encode(), "application/merge-patch+json")

    def wait_status(self, document, seconds=60, **wanted):
        def reached():
            status = self.get(document).get("status", {})
            return status if all(status.get(field) == value for field, value in wanted.items()) else None

        try:
            return wait_until(reached, seconds, f"status {wanted}")
        except TimeoutError as error:
            status = self.get(document).get("status")
            raise AssertionError(
                f"{error}; it is {json.dumps(status, indent=1)}\n{self.operator.log.read_text()[-3000:]}"
            ) from error

    def ray_jobs(self):
        return sorted(item["metadata"]["name"] for item in self.items("ray.io/v1", "rayjobs"))


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
    run = mlflow.MlflowClient(tracking.uri).get_run(status["tracking"]["runId"])
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
    assert f"models:/{cluster.namespace}.base@champion" in status["message"]
    client = mlflow.MlflowClient(tracking.uri)
    name = f"{cluster.namespace}.base"
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


def test_nothing_happens_when_nothing_changes(cluster):
    cluster.claim("corpora", "checkpoints")
    cluster.create(pretrain())
    cluster.wait_status(pretrain(), phase="Starting", reason="Unschedulable")
    wait_until(lambda: is_quiet(cluster.operator), 60, "the end of what earlier tests have left")
    before, version = requests_of(cluster.operator), cluster.get(pretrain())["metadata"]["resourceVersion"]
    time.sleep(8)
    after = requests_of(cluster.operator)
    assert cluster.get(pretrain())["metadata"]["resourceVersion"] == version
    assert {method: after.get(method) for method in ("POST", "PATCH", "DELETE")} == {
        method: before.get(method) for method in ("POST", "PATCH", "DELETE")
    }


def is_quiet(operator):
    before = requests_of(operator)
    time.sleep(3)
    return {**requests_of(operator), "GET": 0} == {**before, "GET": 0}


def requests_of(operator):
    """Number of requests by method, the leader's lease left out."""
    found = {}
    for line in operator.get("/metrics").splitlines():
        if line.startswith("plinth_api_requests_total"):
            method = line.split('method="')[1].split('"')[0]
            found[method] = found.get(method, 0) + float(line.rsplit(" ", 1)[1])
    return found


def test_a_deleted_job_leaves_nothing_behind_and_its_run_is_ended(cluster, tracking):
    cluster.claim("corpora", "checkpoints")
    cluster.create(pretrain())
    status = cluster.wait_status(pretrain(), phase="Starting")
    cluster.plane.request("DELETE", cluster.path("plinth.dev/v1alpha1", "pretrainjobs", "tiny"))
    wait_until(lambda: cluster.ray_jobs() == [], 60, "the end of the RayJob")
    client = mlflow.MlflowClient(tracking.uri)
    run_id = status["tracking"]["runId"]
    wait_until(lambda: client.get_run(run_id).info.status == "KILLED", 30, "the end of the MLflow run")


def test_a_finished_job_keeps_its_state_when_its_children_are_gone(cluster, tracking):
    cluster.claim("corpora", "checkpoints")
    cluster.create(pretrain())
    status = cluster.wait_status(pretrain(), phase="Starting")
    client = mlflow.MlflowClient(tracking.uri)
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
    client = mlflow.MlflowClient(tracking.uri)
    name = f"{cluster.namespace}.tiny-chat"
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


def test_the_probes_tell_health_and_numbers(cluster):
    assert cluster.operator.get("/healthz") == "ok"
    assert "plinth_reconciles_total" in cluster.operator.get("/metrics")
    with pytest.raises(urllib.error.HTTPError):
        cluster.operator.get("/nothing")
