"""What a user can do wrong, on a real API server with the real KubeRay: refused at once, or an honest status."""

import json
import re
import subprocess
import urllib.error
from pathlib import Path

import pytest

from cluster.control_plane import wait_until
from cluster.manifests import documents
from commands import plinth, write_yaml
from lives import RUNNING, tell_ray_jobs
from makers import fine_tune_document, pretrain_document, service_document
from namespaces import PLURALS, Namespace

pytestmark = pytest.mark.integration

BAD = sorted((Path(__file__).parents[1] / "bad").glob("*.yaml"))
SECOND = r"\(document 2\): "
CLAIMS = ("corpora", "checkpoints")
DATA = {"train": [{"uri": "pvc://corpora/corpus.jsonl"}], "validation": {"fraction": 0.1}}
CHECKPOINT = {"uri": "pvc://checkpoints/tiny"}
SERVED = {"uri": "models:/tiny/1"}
LONGEST_JOB, LONGEST_SERVICE = "j" * 36, "s" * 41


@pytest.fixture
def cluster(control_plane, namespace, disturbed):
    cluster = Namespace(control_plane, namespace, disturbed.operator.log)
    cluster.claim(*CLAIMS)
    return cluster


def pretrain(**spec):
    return pretrain_document(**{"data": DATA, "checkpoint": CHECKPOINT, **spec})


def post(plane, namespace, document):
    """Create as kubectl does, which has unknown fields refused; the server's sentence, None where it takes it."""
    path = f"/apis/plinth.dev/v1alpha1/namespaces/{namespace}/{PLURALS[document['kind']]}?fieldValidation=Strict"
    try:
        plane.request("POST", path, json.dumps(document).encode())
    except urllib.error.HTTPError as error:
        if error.code not in (400, 422):
            raise
        return json.loads(error.read())["message"]
    return None


def condition(status, kind="Accepted"):
    """Status and reason of a condition."""
    (found,) = [one for one in status["conditions"] if one["type"] == kind]
    return found["status"], found["reason"]


def run_document(cluster):
    """The one run document in the namespace."""
    (text,) = [item["data"]["run.json"] for item in cluster.items("", "configmaps") if "run.json" in item["data"]]
    return json.loads(text)


def children(cluster):
    """Names of what is made for jobs and services."""
    return [
        item["metadata"]["name"]
        for group, plural in (("ray.io/v1", "rayjobs"), ("ray.io/v1", "rayservices"))
        for item in cluster.items(group, plural)
    ]


# ---- refused by the API server, with the path and a sentence


@pytest.mark.parametrize(
    ("document", "words"),
    [
        pytest.param(pretrain(nope=1), 'unknown field "spec.nope"', id="an unknown field"),
        pytest.param(pretrain(objective={"maskedLM": {}}), "spec.objective: .*exactly one of causalLM, ", id="two"),
        pytest.param(pretrain(training={"steps": -1}), "spec.training.steps: .*greater than or equal to 1", id="minus"),
        pytest.param(pretrain(training={"precision": "fp16"}), 'spec.training.precision: .*"fp16"', id="no such word"),
        pytest.param(service_document(name="s" * 42), "metadata.name: .*at most 41 characters", id="42 characters"),
        *(
            pytest.param(
                pretrain_document(name="n" * n), "metadata.name: .*at most 36 characters", id=f"{n} characters"
            )
            for n in (37, 47, 63, 253)
        ),
        pytest.param(pretrain_document(name="n" * 254), "metadata.name: .*no more than 253", id="254 characters"),
        pytest.param(pretrain_document(name="a.b"), "metadata.name: .*letters, digits and '-' only", id="a dot"),
        pytest.param(pretrain_document(name="1a"), "metadata.name: .*start with a letter", id="a digit first"),
        pytest.param(pretrain_document(name="größe"), "metadata.name: .*letters, digits and '-' only", id="no ASCII"),
        pytest.param(
            {**pretrain(), "metadata": {"name": "tiny", "labels": {"team": "größe"}}}, "metadata.labels: ", id="a label"
        ),
    ],
)
def test_the_api_server_refuses_it_with_the_path_and_a_sentence(control_plane, document, words):
    assert re.search(words, post(control_plane, "default", document) or "it was taken")


def test_kubectl_names_an_unknown_field_too(control_plane, namespace, tmp_path):
    file = write_yaml(tmp_path / "job.yaml", pretrain(training={"stpes": 1}))
    command = [control_plane.kubectl(), "--kubeconfig", control_plane.kubeconfig, "apply", "-n", namespace, "-f", file]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert 'unknown field "spec.training.stpes"' in answer.stderr


def wrong_documents():
    """The files that `plinth validate` refuses, as far as they can be handed to an API server at all."""
    for index, file in enumerate(BAD):
        expected = re.match(r"# expect: (.*)", file.read_text(errors="replace"))[1]
        # JSON has no infinite number.
        if any(words in expected for words in ("is not YAML", "is empty", "finite")):
            continue
        *_, document = documents(file)
        if is_ours(document):
            if "metadata" not in expected:
                document["metadata"]["name"] = f"bad-{index}"
            yield document, expected


def is_ours(document):
    """Whether there is a place to send it to."""
    known = isinstance(document, dict) and document.get("kind") in PLURALS
    return known and document.get("apiVersion") == "plinth.dev/v1alpha1" and "name" in document["metadata"]


def test_no_file_that_plinth_validate_refuses_gets_machines_on_a_cluster(cluster):
    """The operator says of what the API server takes the words that `plinth validate` says."""
    taken = []
    for document, expected in wrong_documents():
        message = post(cluster.plane, cluster.name, document)
        if message is None:
            taken.append((document, expected))
        else:
            path = expected.removeprefix(SECOND).replace("\\", "").partition(": ")[0]
            assert "metadata.name" in path or path in message, message
    assert len(taken) > 20
    for document, expected in taken:
        status = cluster.wait_status(document, phase="Failed", reason="InvalidSpec")
        assert re.search(expected.removeprefix(SECOND), status["message"]), (expected, status["message"])
        assert condition(status) == ("False", "InvalidSpec")
    assert children(cluster) == []


def test_the_operator_and_the_command_line_say_the_same(cluster, tmp_path):
    document = pretrain(training={"globalBatchSize": 7}, compute={"workers": 2}, evaluation={"metrics": ["bleu"]})
    file = write_yaml(tmp_path / "job.yaml", document)
    cluster.create(document)
    message = cluster.wait_status(document, phase="Failed", reason="InvalidSpec")["message"]
    told = message.split("; spec.")
    assert len(told) == 2
    for command in ("validate", "run"):
        code, output = plinth(command, file)
        assert code == 2
        assert "Traceback" not in output
        for problem in told:
            assert problem in output, output


# ---- what changes under a running job


def test_the_spec_of_a_running_job_may_not_change_but_for_the_fields_that_may(cluster):
    cluster.create(pretrain())
    cluster.wait_status(pretrain(), phase="Starting")
    for block, change in {"training": {"steps": 11}, "model": {"config": {"hidden_size": 48}}}.items():
        with pytest.raises(urllib.error.HTTPError) as refused:
            cluster.merge(pretrain(), {"spec": {block: change}})
        message = json.loads(refused.value.read())["message"]
        assert f"spec.{block}: Forbidden: spec.{block} may not change once the first attempt has started" in message
    cluster.merge(pretrain(), {"spec": {"ttlSecondsAfterFinished": 60, "restart": {"maxRestarts": 1}}})
    cluster.merge(pretrain(), {"spec": {"suspend": True}})
    cluster.merge(pretrain(), {"spec": {"training": {"steps": 11}}})


def test_a_spec_that_has_changed_under_a_running_attempt_waits_for_the_next_attempt_and_a_condition_says_so(
    cluster, disturbed
):
    """As after a backup was restored, which has no status: the rules of the API server hold by the status alone."""
    cluster.create(pretrain())
    before = cluster.wait_status(pretrain(), phase="Starting", reason="Unschedulable")
    tell_ray_jobs(cluster, RUNNING)
    disturbed.operator.stop()
    cluster.patch(cluster.path_of(pretrain()) + "/status", {"status": {"attempts": None}})
    cluster.merge(pretrain(), {"spec": {"model": {"config": {"hidden_size": 48}}}})
    disturbed.operator.start()

    def changed():
        status = cluster.get(pretrain())["status"]
        return condition(status) == ("True", "SpecChanged") and status

    status = wait_until(changed, 60, "the condition")
    said = "attempt 1 goes on with the one that it started from: suspend and resume the job"
    assert [said in one["message"] for one in status["conditions"] if one["type"] == "Accepted"] == [True]
    assert run_document(cluster)["model"]["config"]["hidden_size"] == 32
    assert (status["phase"], status["attempts"]) == ("Starting", before["attempts"])
    assert len(cluster.ray_jobs()) == 1
    cluster.merge(pretrain(), {"spec": {"suspend": True}})
    cluster.wait_status(pretrain(), phase="Suspended")
    cluster.merge(pretrain(), {"spec": {"suspend": False}})
    status = cluster.wait_status(pretrain(), phase="Starting")
    assert (condition(status), len(status["attempts"])) == (("True", "Accepted"), 2)


def test_a_spec_that_was_spoilt_while_suspended_is_refused_on_resuming_and_can_be_mended(cluster):
    cluster.create(pretrain())
    cluster.wait_status(pretrain(), phase="Starting")
    cluster.merge(pretrain(), {"spec": {"suspend": True}})
    cluster.wait_status(pretrain(), phase="Suspended")
    cluster.merge(pretrain(), {"spec": {"compute": {"workers": 3}}})
    cluster.merge(pretrain(), {"spec": {"suspend": False}})
    status = cluster.wait_status(pretrain(), phase="Pending", reason="InvalidSpec")
    assert "spec.training.globalBatchSize: 8 rows cannot be shared equally by 3 workers" in status["message"]
    cluster.merge(pretrain(), {"spec": {"suspend": True}})
    cluster.merge(pretrain(), {"spec": {"compute": {"workers": 2}, "suspend": False}})
    status = cluster.wait_status(pretrain(), phase="Starting")
    assert [attempt["number"] for attempt in status["attempts"]] == [1, 2]


# ---- what does not exist


def test_a_missing_secret_is_lifted_from_the_pod(cluster):
    document = fine_tune_document(
        model={"uri": "models:/tiny/1", "secretRef": {"name": "hub"}}, data=DATA, checkpoint=CHECKPOINT
    )
    cluster.create(document)
    cluster.wait_status(document, phase="Starting")
    label = f"labelSelector=plinth.dev%2Fname%3D{document['metadata']['name']}"

    def head():
        found = cluster.plane.request("GET", f"{cluster.path('', 'pods')}?{label}")["items"]
        return next((pod for pod in found if pod["metadata"]["labels"].get("ray.io/node-type") == "head"), None)

    pod = wait_until(head, 60, "the head pod")
    # No kubelet runs here: this is what one writes.
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}
    container = {"name": "ray", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    status = {"phase": "Pending", "containerStatuses": [{**container, "state": {"waiting": waiting}}]}
    cluster.patch(cluster.path("", "pods", pod["metadata"]["name"]) + "/status", {"status": status})
    status = cluster.wait_status(document, phase="Starting", reason="SecretNotFound")
    assert "needs Secret hub, which does not exist; create it in the namespace" in status["message"]


# ---- names, words and sizes


def test_the_longest_names_give_ray_clusters(cluster):
    job, service = (
        pretrain_document(name=LONGEST_JOB, data=DATA, checkpoint=CHECKPOINT),
        service_document(name=LONGEST_SERVICE, model=SERVED),
    )
    cluster.create(job)
    cluster.create(service)

    def clusters():
        found = cluster.items("ray.io/v1", "rayclusters")
        owners = {item["metadata"]["ownerReferences"][0]["kind"] for item in found}
        return owners == {"RayJob", "RayService"} and found

    found = wait_until(clusters, 60, "both RayClusters")
    heads = {item["metadata"]["name"] for item in found}

    def head_pods():
        return {pod["metadata"]["labels"].get("ray.io/cluster") for pod in cluster.items("", "pods")} >= heads

    wait_until(head_pods, 60, "the head pods")
    wait_until(lambda: len(cluster.items("", "services")) >= len(heads), 60, "the head Services")
    cluster.wait_status(job, phase="Starting", reason="Unschedulable")
    cluster.wait_status(service, phase="Starting", reason="Unschedulable")


def test_words_of_any_language_reach_the_workload_and_annotations_reach_nothing(cluster):
    document = pretrain(data={**DATA, "columns": {"text": "Größe 文本 🙂"}}, tracking={"experiment": "Übung 文"})
    document["metadata"]["annotations"] = {"note": "日本語 " * 1000}
    cluster.create(document)
    status = cluster.wait_status(document, phase="Starting", reason="Unschedulable")
    assert status["tracking"]["runId"]
    assert run_document(cluster)["data"]["columns"] == {"text": "Größe 文本 🙂"}
    assert "日本語" not in json.dumps(cluster.items("ray.io/v1", "rayjobs"), ensure_ascii=False)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param(
            {"model": {"config": {"notes": "x" * 900 * 1024}}},
            "spec: is too large: the run document has a limit of 512 KiB",
            id="of configuration",
        ),
        pytest.param(
            {"compute": {"podTemplate": {"metadata": {"annotations": {"a": "x" * 900 * 1024}}}}},
            "spec.compute: is too large: the Ray cluster made from it",
            id="of podTemplate",
        ),
    ],
)
def test_900_kib_are_refused_with_the_limit(cluster, spec, words):
    cluster.create(pretrain(**spec))
    status = cluster.wait_status(pretrain(), phase="Failed", reason="InvalidSpec")
    assert words in status["message"]
    assert cluster.ray_jobs() == []


def test_a_large_spec_within_the_limits_works(cluster):
    """Three bytes a character: 450 KiB of them in the ConfigMap."""
    cluster.create(pretrain(model={"config": {"notes": "文" * 150 * 1024}}))
    cluster.wait_status(pretrain(), phase="Starting", reason="Unschedulable")
    assert len(run_document(cluster)["model"]["config"]["notes"].encode()) == 450 * 1024


def test_resources_of_one_name_do_not_meet(cluster):
    made = [fine_tune_document(name="tiny", data=DATA, model=SERVED), pretrain(), service_document(model=SERVED)]
    cluster.claim("plinth")
    for document in made:
        cluster.create(document)
    for document in made:
        cluster.wait_status(document, phase="Starting", reason="Unschedulable")
    assert len(cluster.ray_jobs()) == 2
    assert len(set(children(cluster))) == 3
