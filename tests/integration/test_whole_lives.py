"""Jobs and services from their first pod to their end: the real operator, the real KubeRay, and pods that are played.

The same play recorded what the tables of the status rest on: it must still be what KubeRay writes.
"""

import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest

from cluster.control_plane import wait_until
from cluster.kuberay_stories import FAILED, GIVEN_UP, STORIES
from cluster.record_kuberay import Stage, playing, record
from makers import pretrain_document, service_document
from namespaces import Namespace
from operators import OperatorProcess
from plinth_api.service_state import CandidateState, ServiceState, VersionCounts

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).resolve().parents[1] / "unit" / "plinth_operator" / "status" / "recorded"
JOB = pretrain_document(
    data={"train": [{"uri": "pvc://corpora/corpus.jsonl"}], "validation": {"fraction": 0.1}},
    checkpoint={"uri": "pvc://checkpoints/tiny"},
)


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    with playing(tmp_path_factory.mktemp("play")) as found:
        yield found


class Replica(BaseHTTPRequestHandler):
    """The state endpoint of a service and of its pods; on a cluster, a model's name begins with the namespace."""

    namespace = ""
    candidate: CandidateState | None = None

    def do_GET(self):
        if not self.path.startswith("/pods/"):
            Replica.namespace = self.path.split("/")[1]
        uri = f"models:/{self.namespace}.tiny-chat/1"
        state = ServiceState(
            name="tiny-chat", replica_id="r1", model_uri=uri, target_uri=uri, loaded=True, candidate=self.candidate
        )
        body = json.dumps(state.to_wire()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def operator(play, tracking, tmp_path_factory):
    plane, _ = play
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    urls = {
        "service_state_url": address + "/{namespace}/{service}",
        "replica_state_url": address + "/pods/{ip}",
    }
    folder = tmp_path_factory.mktemp("operator")
    process = OperatorProcess(folder, plane.kubeconfig, tracking.uri, **urls).start()
    yield process
    process.kill()
    server.shutdown()


@pytest.fixture
def stage(play):
    found = Stage(*play, "life", {}, set())
    yield found
    found.close()


@pytest.fixture
def cluster(stage, play, operator):
    found = Namespace(play[0], stage.namespace, operator.log)
    found.claim("corpora", "checkpoints")
    return found


def trains(stage, cluster, tracking):
    """The job's first step is done; the id of its run."""
    cluster.create(JOB)
    stage.ray_says("PENDING")
    stage.run_pods("head", "worker")
    stage.wait_job("Running", "PENDING")
    assert cluster.get(JOB)["status"]["phase"] == "Starting"
    stage.ray_says("RUNNING")
    run_id = cluster.get(JOB)["status"]["tracking"]["runId"]
    client = mlflow.MlflowClient(tracking.uri, tracking.uri)
    client.set_tag(run_id, "plinth.phase", "training")
    cluster.wait_status(JOB, phase="Training")
    return run_id


def phases(cluster):
    """What was told of by Events, in their order."""
    events = sorted(cluster.items("", "events"), key=lambda event: int(event["metadata"]["resourceVersion"]))
    return [event["reason"] for event in events if event["involvedObject"]["kind"] in ("PretrainJob", "ModelService")]


def test_kuberay_tells_its_stories_as_they_were_recorded(play):
    names = ("succeeds", "is invalid")
    shapes = record({name: STORIES[name] for name in names}, *play)
    for kind in ("RayJob", "RayCluster"):
        recorded = json.loads((FOLDER / f"{kind.lower()}.json").read_text())["shapes"]
        told = {name: shape for (of, name), shape in shapes.items() if of == kind}
        assert set(told) == {name for name in recorded if name.partition(":")[0] in names}
        for name, shape in told.items():
            assert shape["status"].keys() == recorded[name]["status"].keys()
            assert shape["status"].get("message") == recorded[name]["status"].get("message")


def test_a_job_trains_and_succeeds(stage, cluster, tracking):
    run_id = trains(stage, cluster, tracking)
    stage.ray_says("SUCCEEDED", "Job finished successfully.")
    stage.wait_job("Running", "SUCCEEDED")
    client = mlflow.MlflowClient(tracking.uri, tracking.uri)
    for tag, value in {"gate": "Passed", "modelName": "tiny", "modelVersion": "1", "phase": "finished"}.items():
        client.set_tag(run_id, f"plinth.{tag}", value)
    client.set_terminated(run_id, "FINISHED")
    stage.end_submitter(0)
    status = cluster.wait_status(JOB, phase="Succeeded")
    assert [attempt["outcome"] for attempt in status["attempts"]] == ["Succeeded"]
    stage.wait_gone("rayclusters")
    told = phases(cluster)
    # Evaluating while the end of the run is not read yet; never Starting again.
    assert [phase for phase in told[told.index("Training") :] if phase != "Evaluating"] == ["Training", "Succeeded"]


def test_a_program_that_fails_ends_the_job_with_its_own_words(stage, cluster, tracking):
    trains(stage, cluster, tracking)
    stage.ray_says("FAILED", FAILED)
    stage.wait_job("Running", "FAILED")
    stage.end_submitter(1)
    status = cluster.wait_status(JOB, phase="Failed", reason="LossNaN")
    assert status["message"] == "the loss is NaN at step 12"
    assert len(status["attempts"]) == 1


def test_a_head_that_goes_ends_the_attempt_and_the_next_one_trains_on(stage, cluster, tracking):
    run_id = trains(stage, cluster, tracking)
    first = stage.items("rayjobs")[0]["metadata"]["name"]
    stage.delete("pods", stage.pods("head")[0]["metadata"]["name"], group="")
    status = cluster.wait_status(JOB, phase="Pending", reason="HeadLost")
    assert [(attempt["rayJob"], attempt["outcome"]) for attempt in status["attempts"]] == [(first, "HeadLost")]
    wait_until(lambda: len(cluster.ray_jobs()) == 1 and first not in cluster.ray_jobs(), 60, "the second attempt")
    stage.run_pods("head", "worker")
    stage.wait_job("Running", "RUNNING")
    # The run still has the tags of the attempt before.
    assert cluster.get(JOB)["status"]["phase"] == "Starting"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    mlflow.MlflowClient(tracking.uri, tracking.uri).set_tag(run_id, "plinth.trainingSince", now)
    assert len(cluster.wait_status(JOB, phase="Training")["attempts"]) == 2


def test_an_image_that_cannot_be_pulled_is_the_reason_of_the_job(stage, cluster):
    cluster.create(JOB)
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "workloads:1"'}}
    stage.set_pods("worker", "Pending", waiting, reason="ContainersNotReady")
    status = cluster.wait_status(JOB, phase="Starting", reason="ImagePullFailed")
    assert 'Back-off pulling image "workloads:1"' in status["message"]
    stage.run_pods("worker")
    cluster.wait_status(JOB, phase="Starting", reason="")


def test_a_service_is_ready_when_it_answers_and_says_when_it_is_sick(stage, cluster):
    document = service_document(model={"uri": "models:/tiny-chat/1"})
    stage.serve_says("DEPLOYING", "", "UPDATING")
    cluster.create(document)
    stage.run_pods("head", "worker")
    stage.wait_words("rayservices", "pending=DEPLOYING")
    assert cluster.get(document)["status"]["phase"] in ("Starting", "Degraded")
    stage.serve_says("RUNNING")
    stage.place_pods()
    stage.proxy_is_healthy()
    status = cluster.wait_status(document, phase="Ready")
    name = f"{cluster.name}.tiny-chat"
    assert status["model"] == {"name": name, "version": "1", "uri": f"models:/{name}/1"}
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)
    stage.serve_says("UNHEALTHY", "", "UNHEALTHY", "a replica failed its health check")
    status = cluster.wait_status(document, phase="Degraded", reason="RuntimeUnhealthy")
    assert "a replica failed its health check" in status["message"]
    stage.serve_says("DEPLOY_FAILED", "", "UNHEALTHY", GIVEN_UP)
    cluster.wait_status(document, phase="Degraded", reason="ModelLoadFailed", message="it has no tokenizer")
    stage.serve_says("RUNNING")
    cluster.wait_status(document, phase="Ready")
    # A new version gets half of the requests, and fails them.
    canary = {"steps": [50], "intervalSeconds": 1}
    change = {"spec": {"model": {"uri": "models:/tiny-chat/2"}, "rollout": {"canary": canary}}}
    cluster.merge(document, change)
    status = cluster.wait_status(document, phase="Updating")
    assert (status["rollout"]["phase"], status["model"]["version"]) == ("Progressing", "1")
    new = f"models:/{name}/2"
    assert new in stage.items("rayservices")[0]["spec"]["serveConfigV2"]
    counts = VersionCounts(requests=100, errors=40)
    Replica.candidate = CandidateState(uri=new, weight=50, loaded=True, seconds=5, candidate=counts)
    status = cluster.wait_status(document, phase="Ready")
    told = status["rollout"]
    assert (told["phase"], told["reason"], told["candidate"]["errorRate"]) == ("RolledBack", "HighErrorRate", 0.4)
    assert new not in stage.items("rayservices")[0]["spec"]["serveConfigV2"]
    wait_until(lambda: phases(cluster).count("CanaryRolledBack") == 1, 20, "the Event of the rollback")
