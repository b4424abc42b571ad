"""Messages name the field and say what to do."""

import datetime
from typing import Any

import pytest

from makers import Document, fine_tune_document, pretrain_document, service_document
from plinth_api.errors import InvalidSpec, Problem
from plinth_api.parse import parse_resource, path_of
from plinth_api.resolve import spec_hash

KNOWN_STATUS = {"phase": "Training", "attempts": [{"number": 1}]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        pytest.param(
            pretrain_document(training={"steps": -3}), "spec.training.steps: must be at least 1, not -3", id="-3"
        ),
        pytest.param(
            pretrain_document(training={"steps": "10"}),
            'spec.training.steps: must be a whole number, not "10"',
            id="a number in quotes",
        ),
        pytest.param(
            pretrain_document(training={"steps": 1.5}), "spec.training.steps: must be a whole number, not 1.5", id="1.5"
        ),
        pytest.param(
            pretrain_document(training={"learningRate": "fast"}),
            'spec.training.learningRate: must be a number, not "fast"',
            id="a word for a number",
        ),
        pytest.param(
            pretrain_document(training={"learningRate": float("nan")}),
            "spec.training.learningRate: must be a finite number",
            id="not a number",
        ),
        pytest.param(
            pretrain_document(data={"train": [{"uri": "file:///a", "weight": float("inf")}]}),
            "spec.data.train[0].weight: must be a finite number",
            id="infinity in a list",
        ),
        pytest.param(
            pretrain_document(training={"packing": 1}),
            "spec.training.packing: must be true or false, not 1",
            id="1 for true",
        ),
        pytest.param(
            pretrain_document(training={"precision": "fp16"}),
            'spec.training.precision: must be auto, bf16, fp32 or fp8, not "fp16"',
            id="not of the enum",
        ),
        pytest.param(
            pretrain_document(training={"learningRate": 11}),
            "spec.training.learningRate: must be at most 10, not 11",
            id="11",
        ),
        pytest.param(
            pretrain_document(training=5), "spec.training: must be an object, not 5", id="a number for a block"
        ),
        pytest.param(pretrain_document(training=None), "spec.training: is required", id="a block missing"),
        pytest.param(
            pretrain_document(training={"sequence_length": 8}),
            "spec.training.sequence_length: unknown field; did you mean sequenceLength?",
            id="snake case",
        ),
        pytest.param(
            pretrain_document(tracking={"zzz": 8}),
            "spec.tracking.zzz: unknown field; known fields: experiment, secretRef",
            id="unlike any field",
        ),
        pytest.param(
            pretrain_document(objective={"causalLM": {"a": 1}}),
            "spec.objective.causalLM.a: unknown field; it has no fields",
            id="in a block without fields",
        ),
        pytest.param(
            pretrain_document(data={"train": [{"uri": "file:///a", "wieght": 1}]}),
            "spec.data.train[0].wieght: unknown field; did you mean weight?",
            id="a slip in a list",
        ),
        pytest.param(pretrain_document(data={"train": []}), "spec.data.train: must not be empty", id="an empty list"),
        pytest.param(
            pretrain_document(data={"train": {"uri": "a"}}),
            'spec.data.train: must be a list, not {"uri": "a"}',
            id="an object for a list",
        ),
        pytest.param(
            pretrain_document(data={"train": [{"uri": "file:///a"}] * 65}),
            "spec.data.train: must have at most 64 items",
            id="a long list",
        ),
        pytest.param(
            pretrain_document(data={"train": [{"uri": "corpus.jsonl"}]}),
            "spec.data.train[0].uri: must be a URI such as pvc://claim/path, file:///path, hf://org/name, "
            'models:/name@alias or s3://bucket/path, not "corpus.jsonl"',
            id="not a URI",
        ),
        pytest.param(
            pretrain_document(output={"model": ""}), "spec.output.model: must not be empty", id="an empty name"
        ),
        pytest.param(
            pretrain_document(output={"model": "a" * 101}),
            "spec.output.model: must have at most 100 characters",
            id="a long name of a model",
        ),
        pytest.param(
            pretrain_document(output={"model": "a b"}),
            "spec.output.model: must hold letters, digits, '-' and '_' only, with a letter or digit at both ends, "
            'not "a b"',
            id="a blank in a name",
        ),
        pytest.param(
            pretrain_document(compute={"perWorker": {"cpus": "8 cores"}}),
            'spec.compute.perWorker.cpus: must be a quantity: 8, "500m", 96Gi, not "8 cores"',
            id="a quantity with words",
        ),
        pytest.param(
            pretrain_document(compute={"perWorker": {"cpus": 0.5}}),
            'spec.compute.perWorker.cpus: must be a quantity: 8, "500m", 96Gi, not 0.5; write "0.5"',
            id="half a cpu",
        ),
        pytest.param(
            pretrain_document(compute={"podTemplate": [1]}),
            "spec.compute.podTemplate: must be an object, not [1]",
            id="list",
        ),
        pytest.param(
            pretrain_document(compute={"nodeSelector": {"int": 1}}),
            "spec.compute.nodeSelector.int: must be a string, not 1",
            id="a key that is the name of a type",
        ),
        pytest.param(
            pretrain_document(training={"epochs": 1}),
            "spec.training: exactly one of steps, epochs, tokens must be set",
            id="a rule",
        ),
        pytest.param(
            pretrain_document(tracking=["x" * 100]),
            f'spec.tracking: must be an object, not ["{"x" * 75}...',
            id="a long value is cut",
        ),
        pytest.param(pretrain_document(name="a" * 37), "metadata.name must be at most 36 characters", id="a long name"),
        pytest.param(
            service_document(name="A"),
            "metadata.name must hold lower case letters, digits and '-' only, and start with a letter",
            id="upper case in a name",
        ),
        pytest.param(
            {**pretrain_document(), "status": {"progress": {"updatedAt": "yesterday"}}},
            "status.progress.updatedAt: input should be a valid datetime, input is too short",
            id="a message of pydantic's own",
        ),
        pytest.param({**pretrain_document(), "metadata": None}, "metadata: is required", id="no metadata"),
        pytest.param(
            {**pretrain_document(), "kind": "TrainJob"},
            'kind: must be one of PretrainJob, FineTuneJob, ModelService, not "TrainJob"',
            id="a kind of others",
        ),
        pytest.param(
            {**pretrain_document(), "kind": ["PretrainJob"]},
            'kind: must be one of PretrainJob, FineTuneJob, ModelService, not ["PretrainJob"]',
            id="a list of kinds",
        ),
        pytest.param({"kind": "PretrainJob"}, "apiVersion: must be plinth.dev/v1alpha1", id="no apiVersion"),
        pytest.param(
            {"apiVersion": "v1", "kind": "Pod"}, 'apiVersion: must be plinth.dev/v1alpha1, not "v1"', id="a pod"
        ),
        pytest.param("text", 'must be an object with apiVersion, kind and spec, not "text"', id="text"),
        pytest.param(None, "must be an object with apiVersion, kind and spec, not null", id="an empty document"),
    ],
)
def test_message(document: Any, message: str):
    with pytest.raises(InvalidSpec) as refusal:
        parse_resource(document)
    assert [str(problem) for problem in refusal.value.problems] == [message]


def test_every_wrong_field_is_named_at_once():
    with pytest.raises(InvalidSpec) as refusal:
        parse_resource(pretrain_document(training={"steps": 0, "seed": -1}, nope=1))
    assert {problem.path for problem in refusal.value.problems} == {
        "spec.nope",
        "spec.training.steps",
        "spec.training.seed",
    }
    assert "; " in str(refusal.value)


def test_date_is_text_as_for_kubectl():
    job = parse_resource(pretrain_document(tracking={"experiment": datetime.date(2026, 1, 2)}))
    assert job.to_wire()["spec"]["tracking"]["experiment"] == "2026-01-02"


@pytest.mark.parametrize(
    ("changes", "path", "value"),
    [
        pytest.param({"training": {"steps": None, "tokens": 1e9}}, "training.tokens", 1000000000, id="1e9 tokens"),
        pytest.param({"data": {"train": [{"uri": "file:///a", "weight": 2.0}]}}, "data.train", None, id="a float"),
        pytest.param(
            {"model": {"config": {"theta": 10000.0, "none": None}}}, "model.config.theta", 10000.0, id="free form"
        ),
    ],
)
def test_number_has_the_type_of_its_field(changes: Document, path: str, value: Any):
    found = parse_resource(pretrain_document(**changes)).to_wire()["spec"]
    for part in path.split("."):
        found = found[part]
    if value is None:
        assert isinstance(found[0]["weight"], float)
    else:
        assert found == value
        assert type(found) is type(value)


def test_whole_floats_in_a_list():
    service = parse_resource(service_document(rollout={"canary": {"steps": [10.0, 50]}}))
    assert service.to_wire()["spec"]["rollout"]["canary"]["steps"] == [10, 50]


def test_null_in_free_form_is_kept():
    job = parse_resource(pretrain_document(model={"config": {"pad_token_id": 1}}))
    document = pretrain_document()
    document["spec"]["model"]["config"] = {"pad_token_id": None}
    assert parse_resource(document).to_wire()["spec"]["model"]["config"] == {"pad_token_id": None}
    assert spec_hash(parse_resource(document)) != spec_hash(job)


def test_status_of_a_newer_operator_is_read():
    status = {**KNOWN_STATUS, "mood": "good", "attempts": [{"number": 1, "mood": "good"}]}
    job = parse_resource({**fine_tune_document(), "status": status})
    assert job.status is not None
    assert job.to_wire()["status"] == {**KNOWN_STATUS, "conditions": []}


def test_metadata_of_the_api_server_is_read():
    document = fine_tune_document(namespace="team-a")
    document["metadata"] |= {"uid": "u", "generation": 3, "managedFields": [], "labels": {"a": "b"}}
    metadata = parse_resource(document).metadata
    assert (metadata.namespace, metadata.uid, metadata.generation, metadata.labels) == ("team-a", "u", 3, {"a": "b"})


def test_problem_without_a_path_is_its_message():
    assert str(Problem("", "is wrong")) == "is wrong"
    assert path_of(("spec", "data", "train", 0, "uri")) == "spec.data.train[0].uri"
