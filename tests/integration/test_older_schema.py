"""Objects that were stored under another version's CRDs: the operator reports or goes on, and writes every status."""

import copy
import json
import urllib.error
from functools import partial

import pytest

from cluster.control_plane import CRD_PATH, ControlPlane, wait_until
from makers import DOCUMENT_MAKERS, pretrain_document, service_document
from namespaces import PLURALS, Namespace
from operators import OperatorProcess
from plinth_api.crd import crd
from plinth_api.parse import KINDS
from servers import free_port

pytestmark = pytest.mark.integration

LONG_NAME = "l" * 45
OBJECTS = {
    "a name that is too long now": pretrain_document(name=LONG_NAME),
    "a word that is none now": pretrain_document(name="word", training={"precision": "fp16"}),
    "two where one may be now": pretrain_document(name="two", objective={"maskedLM": {}}),
    "nothing where something must be now": pretrain_document(name="nothing", output=None),
    "a field that was removed": pretrain_document(name="removed", training={"gone": {"deep": 1}}),
    "a status of another version": pretrain_document(name="status"),
    "a type that is another now": pretrain_document(name="retyped", training={"steps": "ten"}),
    "a service of another version": service_document(name="service", scaling={"gone": 1}),
}


def loosened(kind):
    """The CRD of a version that asked for less."""
    document = crd(kind)
    schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema.pop("x-kubernetes-validations", None)
    schema["properties"]["metadata"] = {"type": "object"}
    schema["properties"]["spec"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return document


def extended(kind):
    """The CRD of a version that has one field more."""
    document = copy.deepcopy(crd(kind))
    schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["invented"] = {"type": "string", "maxLength": 9}
    return document


def install(plane, make, in_force, kinds=KINDS):
    """Apply the CRDs that `make` gives, and wait until the API server goes by them."""
    for kind in kinds:
        document = make(kind)
        path = f"{CRD_PATH}/{document['metadata']['name']}?fieldManager=plinth-test&force=true"
        plane.request("PATCH", path, json.dumps(document).encode(), "application/apply-patch+yaml")
    for kind in kinds:
        wait_until(partial(is_in_force, in_force, plane, kind), 60, f"the CRD of {kind} to be in force")


def is_in_force(probe, plane, kind):
    try:
        return probe(plane, kind)
    except urllib.error.HTTPError as error:
        # For a moment nobody serves a kind whose CRD has changed.
        if error.code != 503:
            raise
        return False


def tried(plane, kind, **spec):
    """The spec as the API server would store it, None where it refuses it."""
    document = DOCUMENT_MAKERS[kind](name="probe", **spec)
    path = f"/apis/plinth.dev/v1alpha1/namespaces/default/{PLURALS[kind]}?dryRun=All"
    try:
        return plane.request("POST", path, json.dumps(document).encode())["spec"]
    except urllib.error.HTTPError as error:
        if error.code != 422:
            raise
        return None


def takes_anything(plane, kind):
    return tried(plane, kind, model="a text") is not None


def takes_no_text_for_a_block(plane, kind):
    return tried(plane, kind, model="a text") is None


def keeps_what_was_invented(plane, kind):
    return "invented" in (tried(plane, kind, invented="x") or {})


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """A control plane with objects of older CRDs, today's CRDs, and an operator that came with those; no MLflow."""
    folder = tmp_path_factory.mktemp("older")
    with ControlPlane(folder / "plane", crds=("kuberay", "plinth"), scheduler=False) as plane:
        cluster = Namespace(plane, plane.create_namespace(), folder / "operator.log")
        install(plane, loosened, takes_anything)
        for document in OBJECTS.values():
            cluster.create(copy.deepcopy(document))
        status = {"phase": "Compiling", "attempts": [{"outcome": "Strange"}], "conditions": [{"type": "Odd"}]}
        path = cluster.path_of(OBJECTS["a status of another version"])
        cluster.patch(f"{path}/status", {"status": status})
        install(plane, crd, takes_no_text_for_a_block)
        cluster.claim("plinth")
        operator = OperatorProcess(folder, plane.kubeconfig, f"http://127.0.0.1:{free_port()}").start()
        yield cluster, operator
        operator.kill()


@pytest.fixture
def cluster(older):
    return older[0]


def condition(status, kind="Accepted"):
    """Status and reason of a condition."""
    (found,) = [one for one in status["conditions"] if one["type"] == kind]
    return found["status"], found["reason"]


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("a name that is too long now", "metadata.name must be at most 36 characters"),
        ("a word that is none now", 'spec.training.precision: must be auto, bf16, fp32 or fp8, not "fp16"'),
        ("two where one may be now", "spec.objective: exactly one of causalLM, maskedLM"),
        ("nothing where something must be now", "spec.output: is required"),
    ],
)
def test_a_spec_that_newer_rules_refuse_is_told(cluster, which, words):
    status = cluster.wait_status(OBJECTS[which], phase="Failed", reason="InvalidSpec")
    assert words in status["message"]
    assert condition(status) == ("False", "InvalidSpec")


def test_a_field_that_was_removed_is_nothing_to_an_object_that_still_has_it(cluster):
    document = OBJECTS["a field that was removed"]
    cluster.wait_status(document, phase="Pending", reason="TrackingUnavailable")
    assert "gone" not in cluster.get(document)["spec"]["training"]
    assert cluster.ray_jobs() == []


def test_a_status_of_another_version_is_no_obstacle(cluster):
    document = OBJECTS["a status of another version"]
    status = cluster.wait_status(document, phase="Pending", reason="TrackingUnavailable")
    assert status["attempts"] == []
    assert "Odd" not in {one["type"] for one in status["conditions"]}


def test_an_object_whose_status_cannot_be_written_is_in_the_log_and_can_be_mended(older):
    """The API server evaluates its rules on the whole object, and they cannot compare a text with a number."""
    cluster, operator = older
    document = OBJECTS["a type that is another now"]
    wait_until(lambda: "expected int, got string" in operator.log.read_text(), 60, "the API server's words in the log")
    assert "status" not in cluster.get(document)
    cluster.merge(document, {"spec": {"training": {"steps": 10}}})
    cluster.wait_status(document, phase="Pending", reason="TrackingUnavailable")


def test_a_service_of_another_version_waits_for_its_model_like_any_other(cluster):
    cluster.wait_status(OBJECTS["a service of another version"], phase="Pending", reason="TrackingUnavailable")


def test_defaults_that_came_later_are_those_of_the_new_version(cluster):
    found = cluster.get(OBJECTS["a field that was removed"])
    assert found["spec"]["restart"] == {"maxRestarts": 3}


def test_a_field_of_a_newer_version_is_named_and_the_object_goes_on_without_it(older):
    """As when the operator is rolled back, and the CRDs are not."""
    cluster, operator = older
    # A watch that is older than the CRD drops the field for some seconds more.
    operator.stop()
    install(cluster.plane, extended, keeps_what_was_invented, ["PretrainJob"])
    document = pretrain_document(name="newer", invented="x")
    cluster.create(document)
    operator.start()
    status = cluster.wait_status(document, phase="Failed", reason="InvalidSpec")
    assert "spec.invented: unknown field" in status["message"]
    cluster.merge(document, {"spec": {"invented": None}})
    cluster.wait_status(document, phase="Pending", reason="TrackingUnavailable")
