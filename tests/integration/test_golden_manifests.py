"""What the operator makes of the examples is taken by a real API server with KubeRay's CRDs, to the last field."""

import json
import urllib.error

import pytest
import yaml

import golden
from cluster.manifests import documents
from plinth_operator.plan.metadata import manifest_hash

pytestmark = pytest.mark.integration

PATHS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "Ingress": "/apis/networking.k8s.io/v1/namespaces/{}/ingresses",
    "RayJob": "/apis/ray.io/v1/namespaces/{}/rayjobs",
    "RayService": "/apis/ray.io/v1/namespaces/{}/rayservices",
}
FILES = sorted(golden.FOLDER.glob("*/*.yaml"))


def as_sent(file):
    """The object of a file, with the documents that a reviewer sees opened closed again."""
    child = yaml.safe_load(file.read_text())
    if child["kind"] == "ConfigMap":
        child["data"] = {name: json.dumps(document) for name, document in child["data"].items()}
    if child["kind"] == "RayService":
        child["spec"]["serveConfigV2"] = yaml.safe_dump(child["spec"]["serveConfigV2"], sort_keys=False)
    return child


def dry_run(plane, namespace, child):
    """The object as the API server would store it."""
    child["metadata"]["namespace"] = namespace
    path = f"{PATHS[child['kind']].format(namespace)}?dryRun=All&fieldValidation=Strict"
    try:
        return plane.request("POST", path, json.dumps(child).encode())
    except urllib.error.HTTPError as error:
        raise AssertionError(json.loads(error.read())["message"]) from error


def holds_all_of(stored, sent):
    """Whether everything that was sent is in what is stored: nothing was dropped or written in other words."""
    if isinstance(sent, dict):
        return isinstance(stored, dict) and all(holds_all_of(stored.get(key), value) for key, value in sent.items())
    if isinstance(sent, list):
        return len(stored or ()) == len(sent) and all(map(holds_all_of, stored, sent))
    return stored == sent


def test_every_example_has_its_golden_manifests():
    assert golden.EXAMPLES
    assert {file.parent.name for file in FILES} == {example.stem for example in golden.EXAMPLES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_api_server_takes_every_field(control_plane, namespace, file):
    sent = as_sent(file)
    stored = dry_run(control_plane, namespace, sent)
    assert holds_all_of(stored["spec" if "spec" in sent else "data"], sent.get("spec", sent.get("data")))
    assert stored["metadata"]["labels"] == sent["metadata"]["labels"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_field_that_is_none_would_be_refused(control_plane, namespace, file):
    with pytest.raises(AssertionError, match='unknown field "noSuchField"'):
        dry_run(control_plane, namespace, {**as_sent(file), "noSuchField": 1})


@pytest.mark.parametrize("example", golden.EXAMPLES, ids=lambda example: example.stem)
def test_every_example_itself_is_taken(control_plane, namespace, example):
    for document in documents(example):
        plural = {"PretrainJob": "pretrainjobs", "FineTuneJob": "finetunejobs", "ModelService": "modelservices"}
        path = f"/apis/plinth.dev/v1alpha1/namespaces/{namespace}/{plural[document['kind']]}"
        query = "?dryRun=All&fieldValidation=Strict"
        stored = control_plane.request("POST", path + query, json.dumps(document).encode())
        assert holds_all_of(stored["spec"], document["spec"])


def test_the_hash_on_a_golden_manifest_is_its_own():
    rayjob = yaml.safe_load((golden.FOLDER / "pretrain" / "rayjob.yaml").read_text())
    assert rayjob["metadata"]["annotations"]["plinth.dev/hash"] == manifest_hash(rayjob)
