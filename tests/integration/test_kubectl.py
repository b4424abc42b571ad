"""What kubectl shows of the three kinds, from a real API server: columns, and words for every field."""

import json
import re
import subprocess

import pytest

from cluster.control_plane import wait_until
from makers import DOCUMENT_MAKERS
from namespaces import PLURALS
from plinth_api.crd import resource_schema
from plinth_api.parse import KINDS

pytestmark = pytest.mark.integration

AS_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
JOB_STATUS = {
    "phase": "Training",
    "reason": "",
    "message": "a sentence",
    "progress": {
        **{"steps": "840/2000", "percentage": "42%", "eta": "17m", "loss": 2.31, "tokensPerSecond": 81204},
        **{"step": 840, "totalSteps": 2000, "percent": 42, "etaSeconds": 1020},
    },
    "model": {"name": "team-a.tiny", "version": "3", "uri": "models:/team-a.tiny/3"},
    "tracking": {"runUrl": "http://mlflow/#/experiments/1/runs/r"},
    "usage": {"gpus": 8, "gpuSeconds": 100},
}
SERVICE_STATUS = {
    "phase": "Ready",
    "reason": "",
    "message": "a sentence",
    "model": {"name": "team-a.tiny", "version": "3", "uri": "models:/team-a.tiny/3"},
    "readyReplicas": 2,
    "usage": {"gpus": 4},
    "url": "http://tiny-serve.team-a.svc:8000",
}
JOB_ROW = {
    **{"Name": "tiny", "Phase": "Training", "Reason": "", "Step": "840/2000", "Progress": "42%", "ETA": "17m"},
    **{"Loss": 2.31, "Tokens/s": 81204, "GPUs": 8},
}
SERVICE_ROW = {
    **{"Name": "tiny", "Phase": "Ready", "Reason": "", "Model": "team-a.tiny", "Version": "3", "Ready": 2, "GPUs": 4},
}
WIDE = {
    "PretrainJob": {"Model": "models:/team-a.tiny/3", "Run": "http://mlflow/#/experiments/1/runs/r"},
    "FineTuneJob": {"Model": "models:/team-a.tiny/3", "Run": "http://mlflow/#/experiments/1/runs/r"},
    "ModelService": {"URL": "http://tiny-serve.team-a.svc:8000"},
}


def kubectl(plane, *arguments):
    """The output of a command that succeeds."""
    command = [plane.kubectl(), "--kubeconfig", plane.kubeconfig, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def with_status(plane, namespace, kind):
    """A resource with the status of one that is at work; nobody but the test acts on it."""
    path = f"/apis/plinth.dev/v1alpha1/namespaces/{namespace}/{PLURALS[kind]}"
    plane.request("POST", path, json.dumps(DOCUMENT_MAKERS[kind](name="tiny")).encode())
    status = SERVICE_STATUS if kind == "ModelService" else JOB_STATUS
    body = json.dumps({"status": status}).encode()
    plane.request("PATCH", f"{path}/tiny/status", body, "application/merge-patch+json")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_are_those_of_the_design(control_plane, namespace, kind):
    table = control_plane.request("GET", with_status(control_plane, namespace, kind), accept=AS_TABLE)
    cells = dict(zip((column["name"] for column in table["columnDefinitions"]), table["rows"][0]["cells"], strict=True))
    shown = [column["name"] for column in table["columnDefinitions"] if column["priority"] == 0]
    expected = SERVICE_ROW if kind == "ModelService" else JOB_ROW
    assert shown == [*expected, "Age"]
    assert {name: cells[name] for name in expected} == expected
    assert cells["Age"].endswith("s")
    assert {**WIDE[kind], "Message": "a sentence"}.items() <= cells.items()


@pytest.mark.parametrize("kind", KINDS)
def test_kubectl_get_prints_them_also_by_short_name_and_category(control_plane, namespace, kind):
    with_status(control_plane, namespace, kind)
    short = {"PretrainJob": "ptj", "FineTuneJob": "ftj", "ModelService": "msvc"}[kind]
    lines = kubectl(control_plane, "get", short, "-n", namespace).splitlines()
    expected = SERVICE_ROW if kind == "ModelService" else JOB_ROW
    assert lines[0].split() == [*(name.upper() for name in expected), "AGE"]
    assert lines[1].split()[:-1] == [str(value) for value in expected.values() if value != ""]
    assert "tiny" in kubectl(control_plane, "get", "plinth", "-n", namespace)
    assert "a sentence" in kubectl(control_plane, "get", short, "-n", namespace, "-o", "wide")


def paths_of(schema, path=""):
    """Every field below a schema, with what is said of it."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}.{name}", inner
        yield from paths_of(inner.get("items", inner), f"{path}.{name}")


def all_fields():
    return [
        (f"{kind.lower()}{path}", field)
        for kind in KINDS
        for part in ("spec", "status")
        for path, field in paths_of(resource_schema(kind)["properties"][part], f".{part}")
    ]


def says_more(path, field):
    """Whether a description has words that are neither the field's name nor those of every sentence."""
    name = path.rpartition(".")[2].lower()
    words = re.findall(r"[a-z0-9]+", field.get("description", "").lower())
    return any(word not in {name, *name.split("_"), "a", "an", "the", "of", "is", "in", "and"} for word in words)


def test_every_field_of_every_kind_has_words_that_say_more_than_its_name():
    fields = all_fields()
    assert len(fields) > 500
    assert [path for path, field in fields if not says_more(path, field)] == []


def test_the_api_server_serves_the_words_of_every_field(control_plane):
    """`kubectl explain` reads what is checked here, for all fields at once."""

    def served():
        found = control_plane.request("GET", "/openapi/v3/apis/plinth.dev/v1alpha1")["components"]["schemas"]
        return found if len([name for name in found if name.rpartition(".")[2] in KINDS]) == len(KINDS) else None

    schemas = wait_until(served, 60, "the published OpenAPI")
    by_kind = {name.rpartition(".")[2]: schema for name, schema in schemas.items()}
    published = {
        f"{kind.lower()}{path}": field["description"]
        for kind in KINDS
        for part in ("spec", "status")
        for path, field in paths_of(by_kind[kind]["properties"][part], f".{part}")
    }
    assert published == {path: field["description"] for path, field in all_fields()}


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("pretrainjob", "PretrainJob trains a foundation model"),
        ("pretrainjob.spec.training", "globalBatchSize"),
        ("pretrainjob.spec.training.steps", "steps"),
        ("finetunejob.spec.method.lora", "targetModules"),
        ("modelservice.spec.scaling", "with 0 the last replica"),
        ("modelservice.status.phase", "phase of the service"),
    ],
)
def test_kubectl_explain_prints_them(control_plane, field, words):
    assert words in kubectl(control_plane, "explain", field)
