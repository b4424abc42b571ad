"""`kubectl apply` and `plinth validate` take and refuse the same documents.

The schema is checked here by jsonschema. CEL is not evaluated here: a document that only a rule refuses must get from
pydantic a message that the CRD has as the message of a rule.
"""

from typing import Any

import jsonschema
import pytest

from makers import Document, fine_tune_document, pretrain_document, service_document
from plinth_api.crd import Schema, resource_schema
from plinth_api.errors import InvalidSpec
from plinth_api.parse import KINDS, parse_resource

GOOD = [
    pytest.param(pretrain_document(), id="a small pretraining job"),
    pytest.param(fine_tune_document(), id="a small fine-tuning job"),
    pytest.param(service_document(), id="a small service"),
    pytest.param(pretrain_document(name="a" * 36), id="the longest name of a job"),
    pytest.param(service_document(name="a" * 41), id="the longest name of a service"),
    pytest.param(
        pretrain_document(model={"architecture": None, "config": None, "tokenizer": None, "uri": "models:/a@b"}),
        id="weights to go on from",
    ),
    pytest.param(
        pretrain_document(model={"config": {"rope": {"factor": 2.5, "kind": None}}}), id="a null in free form"
    ),
    pytest.param(pretrain_document(training={"steps": None, "epochs": 1}), id="a whole number where a float belongs"),
    pytest.param(pretrain_document(training={"steps": None, "tokens": 1e9}), id="1e9 where a whole number belongs"),
    pytest.param(pretrain_document(training={"learningRate": 3e-4}), id="a small float"),
    pytest.param(
        pretrain_document(compute={"perWorker": {"cpus": 8, "memory": "96Gi"}}), id="quantities of both types"
    ),
    pytest.param(pretrain_document(compute={"perWorker": {"cpus": "500m"}}), id="a fraction of a cpu"),
    pytest.param(pretrain_document(compute={}), id="an empty block"),
    pytest.param(fine_tune_document(method={"full": {}}), id="another member of a union than the default's"),
    pytest.param(fine_tune_document(method={"lora": {"r": 8}}), id="part of the default's member of a union"),
    pytest.param(fine_tune_document(output={"merge": True}), id="the default method merged"),
    pytest.param(
        fine_tune_document(method={"prefix": {}}, training={"packing": False}), id="a prefix in rows of one document"
    ),
    pytest.param(
        fine_tune_document(
            data={"validation": {"sources": [{"uri": "hf://datasets/a/b", "split": "test"}]}},
            evaluation={"gate": [{"metric": "loss", "betterThan": "champion", "by": 0.1}]},
            output={"alias": "champion"},
        ),
        id="a gate",
    ),
    pytest.param(
        pretrain_document(
            compute={
                "nodeSelector": {"zone": "a"},
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
                "env": [{"name": "A", "value": ""}, {"name": "B", "secretKeyRef": {"name": "s", "key": "k"}}],
                "volumes": [{"claimName": "c", "mountPath": "/c"}],
                "podTemplate": {"spec": {"hostNetwork": True}},
            }
        ),
        id="options of pods",
    ),
    pytest.param(
        service_document(scaling={"minReplicas": 2, "maxReplicas": 2}, rollout={"canary": {"steps": [5, 50]}}),
        id="a service that scales",
    ),
]

NULLS = [
    pytest.param(
        {**pretrain_document(), "spec": {**pretrain_document()["spec"], "compute": None}}, id="null for a block"
    ),
    pytest.param(
        {**pretrain_document(), "spec": {**pretrain_document()["spec"], "suspend": None}}, id="null for a default"
    ),
    pytest.param(
        {**pretrain_document(), "spec": {**pretrain_document()["spec"], "activeDeadlineSeconds": None}},
        id="null for what is optional",
    ),
]

BAD = [
    pytest.param(pretrain_document(nope=1), "spec.nope", id="an unknown block"),
    pytest.param(pretrain_document(training={"sequence_length": 8}), "spec.training.sequence_length", id="snake case"),
    pytest.param(pretrain_document(objective={"causalLM": {"a": 1}}), "spec.objective.causalLM.a", id="too much in {}"),
    pytest.param(pretrain_document(training={"steps": -3}), "spec.training.steps", id="negative steps"),
    pytest.param(pretrain_document(training={"steps": 1.5}), "spec.training.steps", id="half a step"),
    pytest.param(pretrain_document(training={"steps": "10"}), "spec.training.steps", id="a number as text"),
    pytest.param(pretrain_document(training={"steps": True}), "spec.training.steps", id="true for a number"),
    pytest.param(pretrain_document(training={"packing": "yes"}), "spec.training.packing", id="text for a boolean"),
    pytest.param(pretrain_document(training={"precision": "fp16"}), "spec.training.precision", id="not of the enum"),
    pytest.param(pretrain_document(training={"learningRate": 11}), "spec.training.learningRate", id="above the bound"),
    pytest.param(pretrain_document(training=None), "spec.training", id="a block missing"),
    pytest.param(pretrain_document(data={"train": []}), "spec.data.train", id="an empty list"),
    pytest.param(pretrain_document(data={"train": {"uri": "a"}}), "spec.data.train", id="an object for a list"),
    pytest.param(pretrain_document(data={"train": [{"uri": "x.jsonl"}]}), "spec.data.train[0].uri", id="not a URI"),
    pytest.param(
        pretrain_document(data={"train": [{"uri": "file:///a"}] * 65}), "spec.data.train", id="a list that is too long"
    ),
    pytest.param(pretrain_document(compute=3), "spec.compute", id="a number for a block"),
    pytest.param(
        pretrain_document(compute={"perWorker": {"cpus": "8 cores"}}), "spec.compute.perWorker.cpus", id="units"
    ),
    pytest.param(
        pretrain_document(compute={"perWorker": {"cpus": 0.5}}), "spec.compute.perWorker.cpus", id="half a cpu"
    ),
    pytest.param(
        pretrain_document(compute={"perWorker": {"cpus": -1}}), "spec.compute.perWorker.cpus", id="minus a cpu"
    ),
    pytest.param(
        pretrain_document(compute={"perWorker": {"memory": [1]}}),
        "spec.compute.perWorker.memory",
        id="a list of memory",
    ),
    pytest.param(
        pretrain_document(compute={"nodeSelector": {"zone": 1}}),
        "spec.compute.nodeSelector.zone",
        id="a map of numbers",
    ),
    pytest.param(
        pretrain_document(compute={"nodeSelector": {str(i): "a" for i in range(33)}}),
        "spec.compute.nodeSelector",
        id="a map that is too large",
    ),
    pytest.param(pretrain_document(compute={"podTemplate": "x"}), "spec.compute.podTemplate", id="text for free form"),
    pytest.param(pretrain_document(output={"model": ""}), "spec.output.model", id="an empty name"),
    pytest.param(pretrain_document(output={"model": "a" * 101}), "spec.output.model", id="a name too long for a model"),
    pytest.param(pretrain_document(output={"model": "a b"}), "spec.output.model", id="a blank in a name"),
    pytest.param(pretrain_document(output={"merge": True}), "spec.output.merge", id="a field of the other kind"),
    pytest.param(
        service_document(adapters=[{"name": "A", "uri": "models:/a/1"}]), "spec.adapters[0].name", id="upper case"
    ),
    pytest.param(
        service_document(rollout={"canary": {"steps": [100]}}), "spec.rollout.canary.steps[0]", id="a bad list item"
    ),
]

BROKEN_RULES = [
    pytest.param(pretrain_document(objective={"causalLM": None}), "spec.objective", id="no objective"),
    pytest.param(pretrain_document(objective={"maskedLM": {}}), "spec.objective", id="two objectives"),
    pytest.param(pretrain_document(training={"epochs": 1}), "spec.training", id="steps and epochs"),
    pytest.param(pretrain_document(model={"uri": "models:/a/1"}), "spec.model", id="architecture and uri"),
    pytest.param(
        pretrain_document(model={"architecture": None, "tokenizer": None, "uri": "models:/a/1"}),
        "spec.model",
        id="config of a model that has its own",
    ),
    pytest.param(
        pretrain_document(model={"architecture": None, "config": None, "uri": "models:/a/1"}),
        "spec.model",
        id="a new tokenizer for old weights",
    ),
    pytest.param(
        pretrain_document(compute={"env": [{"name": "A", "value": "a", "secretKeyRef": {"name": "s", "key": "k"}}]}),
        "spec.compute.env[0]",
        id="two values of a variable",
    ),
    pytest.param(
        pretrain_document(compute={"elastic": {"minWorkers": 2, "maxWorkers": 1}}), "spec.compute.elastic", id="elastic"
    ),
    pytest.param(
        pretrain_document(evaluation={"gate": [{"metric": "loss", "min": 1, "max": 2}]}),
        "spec.evaluation.gate[0]",
        id="a gate with two bounds",
    ),
    pytest.param(
        pretrain_document(evaluation={"gate": [{"metric": "loss", "max": 2, "by": 1}]}),
        "spec.evaluation.gate[0]",
        id="a margin of a bound",
    ),
    pytest.param(fine_tune_document(method={"lora": {}, "full": {}}), "spec.method", id="two methods"),
    pytest.param(fine_tune_document(task={"instruction": None}), "spec.task", id="no task"),
    *(
        pytest.param(
            fine_tune_document(method={name: {}}, output={"merge": True}), "spec", id=f"{name} that is to be merged"
        )
        for name in ("full", "adaptionPrompt", "prefix", "prompt", "promptEncoder")
    ),
    *(
        pytest.param(
            fine_tune_document(method={name: {}}, training={"packing": True}), "spec", id=f"{name} in packed rows"
        )
        for name in ("prefix", "prompt", "promptEncoder")
    ),
    pytest.param(service_document(scaling={"minReplicas": 2}), "spec.scaling", id="more at least than at most"),
    pytest.param(pretrain_document(name="a" * 37), "", id="a long name of a job"),
    pytest.param(service_document(name="a" * 42), "", id="a long name of a service"),
    pytest.param(pretrain_document(name="1a"), "", id="a name that starts with a digit"),
    pytest.param(fine_tune_document(name="a.b"), "", id="a dot in a name"),
]

SCHEMAS = {kind: resource_schema(kind) for kind in KINDS}


def strict(schema: Schema) -> Schema:
    """A structural schema for jsonschema: unknown fields refused as kubectl does, int-or-string spelled out."""
    result: dict[str, Any] = {key: value for key, value in schema.items() if key != "default"}
    if "x-kubernetes-int-or-string" in schema:
        result["type"] = ["integer", "string"]
    if "properties" in schema:
        result["properties"] = {name: strict(inner) for name, inner in schema["properties"].items()}
        result["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            result[key] = strict(schema[key])
    return result


VALIDATORS = {
    kind: jsonschema.Draft202012Validator(
        {**strict(schema), "properties": {**strict(schema)["properties"], "metadata": {"type": "object"}}}
    )
    for kind, schema in SCHEMAS.items()
}


def schema_accepts(document: Document) -> bool:
    return bool(VALIDATORS[document["kind"]].is_valid(document))


def rule_messages(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(rule_messages, schema))
    if not isinstance(schema, dict):
        return set()
    own = {rule["message"] for rule in schema.get("x-kubernetes-validations", ())}
    return own.union(*map(rule_messages, schema.values()))


@pytest.mark.parametrize("document", GOOD)
def test_both_accept(document: Document):
    assert schema_accepts(document)
    parse_resource(document)


@pytest.mark.parametrize("document", NULLS)
def test_null_counts_as_left_out(document: Document):
    kept = {key: value for key, value in document["spec"].items() if value is not None}
    assert parse_resource(document) == parse_resource({**document, "spec": kept})


@pytest.mark.parametrize(("document", "path"), BAD)
def test_both_refuse(document: Document, path: str):
    assert not schema_accepts(document)
    with pytest.raises(InvalidSpec) as refusal:
        parse_resource(document)
    assert [problem.path for problem in refusal.value.problems] == [path]


@pytest.mark.parametrize(("document", "path"), BROKEN_RULES)
def test_rule_is_in_the_crd_too(document: Document, path: str):
    assert schema_accepts(document)
    with pytest.raises(InvalidSpec) as refusal:
        parse_resource(document)
    (problem,) = refusal.value.problems
    assert problem.path == path
    assert problem.message in rule_messages(SCHEMAS[document["kind"]])
