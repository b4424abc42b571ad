"""No field of the API is silently ignored: each one changes the run document, is refused, or is for the cluster only.

The fields are taken from the models, so a new one is tested without a line here, or fails until it has an entry in
`SAMPLES` (where no value can be made from its schema) or in `plinth_api.support`.
"""

import copy
import re
from typing import Any

import pytest

from makers import DOCUMENT_MAKERS, Document, make_resolve_settings
from plinth_api.base import ApiModel
from plinth_api.crd import Schema, resource_schema
from plinth_api.errors import InvalidSpec, Problem
from plinth_api.fields import ApiField, fields_of
from plinth_api.model_service import ModelService
from plinth_api.parse import KINDS, fields_by_wire_name, models_in, parse_resource
from plinth_api.resolve import resolve_serve_run, resolve_train_run
from plinth_api.run import ServeRun, TrainRun
from plinth_api.support import CLUSTER_ONLY, cluster_only_fields

TEXTS = ("other", "another", "/other", "pvc://claim/other", "pvc://claim/another")

SAME_AS_DEFAULT = {
    "spec.objective.causalLM={}": "the job that fields are put into has it",
    "spec.engine=torch": "auto is torch where a service has no GPUs",
}
"""Values that are accepted and mean what the default means."""

SAMPLES: dict[str, Any] = {
    "spec.training.globalBatchSize": 16,
    "spec.training.microBatchSize": "auto",
    "spec.training.packing": False,
    "spec.compute.workers": 4,
    "spec.compute.elastic.minWorkers": 1,
    "spec.compute.elastic.maxWorkers": 4,
    "spec.evaluation.metrics": ["loss"],
    "spec.evaluation.gate[].metric": "loss",
    "spec.evaluation.gate[].betterThan": "models:/other/1",
    "spec.scaling.minReplicas": 2,
    "spec.limits.maxBodyBytes": "1Mi",
}
"""Values for fields where one made from the schema would contradict another field."""

GIVEN: dict[str, Document] = {
    "PretrainJob spec.model.uri": {
        "spec.model.uri": "pvc://claim/another",
        "spec.model.config": None,
        "spec.model.tokenizer": None,
    },
    "spec.training.schedule.decaySteps": {"spec.training.schedule.name": "wsd"},
    "spec.training.precision=fp32": {"spec.compute.perWorker.gpus": 1},
    "spec.task.instruction": {"spec.task.completion": {}},
    "spec.task.reinforcement.reward.uri": {"spec.task.reinforcement.grpo": {}},
    "spec.task.reinforcement.reward.secretRef.name": {"spec.task.reinforcement.grpo": {}},
    "spec.compute.parallelism.replicate": {"spec.compute.perWorker.gpus": 1},
    "spec.compute.elastic.minWorkers": {"spec.compute.elastic.minWorkers": 2},
    "spec.compute.elastic.maxWorkers": {"spec.compute.elastic.maxWorkers": 3},
    "spec.evaluation.gate[].metric": {
        "spec.evaluation.gate[].metric": "perplexity",
        "spec.evaluation.gate[].max": 1.0,
    },
    "spec.evaluation.gate[].by": {"spec.evaluation.gate[].betterThan": "models:/other/1"},
    "spec.scaling.minReplicas": {"spec.scaling.maxReplicas": 2},
    "spec.engine=vllm": {"spec.compute.perReplica.gpus": 1},
    "spec.compute.tensorParallel": {"spec.engine": "vllm", "spec.compute.perReplica.gpus": 2},
    "spec.data.format=text": {"spec.task.completion": {}},
    "spec.data.format=labelled": {"spec.task.classification": {}},
    "spec.data.format=preference": {"spec.task.preference.dpo": {}},
    "PretrainJob spec.data.columns.prompt": {"spec.objective.contrastiveText": {}},
    "PretrainJob spec.data.columns.completion": {"spec.objective.contrastiveText": {}},
    "PretrainJob spec.data.columns.image": {"spec.objective.maskedImage": {}, "spec.model.tokenizer": None},
    "PretrainJob spec.data.train[].format=imageFolder": {
        "spec.objective.maskedImage": {},
        "spec.model.tokenizer": None,
    },
    "PretrainJob spec.data.validation.sources[].format=imageFolder": {
        "spec.objective.maskedImage": {},
        "spec.model.tokenizer": None,
    },
    "spec.objective.maskedImage.maskRatio": {"spec.model.tokenizer": None},
}
"""What must hold beside a field for it to matter."""

BASES: dict[str, Document] = {
    "PretrainJob": {"compute": {"workers": 2}},
    "FineTuneJob": {"compute": {"workers": 2}, "data": {"validation": {"fraction": 0.1}}},
    "ModelService": {"model": {"uri": "models:/tiny/1"}},
}


SCHEMAS = {kind: resource_schema(kind) for kind in KINDS}


def leaves() -> list[Any]:
    """A parameter for each kind, leaf field and value worth trying."""
    return [
        pytest.param(kind, field, value, id=f"{kind} {field.path}={value}")
        for kind in KINDS
        for field in fields_of(kind)
        if field.nested is None or not field.nested.model_fields
        for value in values_for(field, schema_at(kind, field.path))
        if f"{field.path}={value}" not in SAME_AS_DEFAULT
    ]


def schema_at(kind: str, path: str) -> Schema:
    """The structural schema of the field at `path`."""
    schema = SCHEMAS[kind]
    for part in path.split("."):
        schema = schema["properties"][part.removesuffix("[]")]
        schema = schema["items"] if part.endswith("[]") else schema
    return schema


def values_for(field: ApiField, schema: Schema) -> list[Any]:
    """Valid values other than the default: all of an enum, two of anything else that has two."""
    if field.path in SAMPLES:
        return [SAMPLES[field.path]]
    if "enum" in schema:
        return [value for value in schema["enum"] if value != schema.get("default")]
    return [value for value in candidates(schema) if value != schema.get("default")][:1]


def candidates(schema: Schema) -> list[Any]:
    if "x-kubernetes-int-or-string" in schema:
        return [3, "500m"]
    if "x-kubernetes-preserve-unknown-fields" in schema:
        return [{"other": 1}, {"other": 2}]
    match schema["type"]:
        case "boolean":
            return [True, False]
        case "integer":
            return [schema.get("minimum", 0) + 1, schema.get("minimum", 0) + 2]
        case "number":
            low, high = schema.get("minimum", 0), schema.get("maximum", 1)
            return [low + (high - low) / 2, low + (high - low) / 4]
        case "string":
            texts = schema.get("enum") or TEXTS
            return [text for text in texts if re.match(schema.get("pattern", ""), text)]
        case "array":
            return [[value] for value in schema["items"].get("enum") or candidates(schema["items"])]
        case "object" if "additionalProperties" in schema:
            return [{"other": value} for value in candidates(schema["additionalProperties"])]
        case _:
            return [{}]


def open_block(kind: str, document: Document, path: str) -> tuple[Document, type[Any]]:
    """The object that holds the field at `path`, and its model; what is missing on the way is made."""
    outer = path.split(".")[:-1]
    where: Document = document
    model: type[Any] = KINDS[kind]
    for depth, part in enumerate(outer, start=1):
        name = part.removesuffix("[]")
        drop_rivals(where, model, name)
        nested = models_in(fields_by_wire_name(model)[name].annotation)[0]
        if name not in where:
            filled = required_of(kind, nested, ".".join(outer[:depth]))
            where[name] = [filled] if part.endswith("[]") else filled
        where, model = where[name][0] if part.endswith("[]") else where[name], nested
    return where, model


def put(kind: str, document: Document, path: str, value: Any) -> None:
    """Set the field at `path`; None removes it."""
    where, model = open_block(kind, document, path)
    name = path.rpartition(".")[2]
    drop_rivals(where, model, name)
    where[name] = value
    if value is None:
        del where[name]


def drop_rivals(where: Document, model: type[Any], name: str) -> None:
    """Take the other keys of a union out of `where` before `name` is put there."""
    for rival in rivals(model, name):
        where.pop(rival, None)


def rivals(model: type[Any], name: str) -> list[str]:
    """The other keys of the unions in `model` that `name` belongs to."""
    groups = [
        set(rule.message.removeprefix("exactly one of ").removesuffix(" must be set").split(", "))
        for rule in (model.rules if issubclass(model, ApiModel) else ())
        if rule.message.startswith("exactly one of ")
    ]
    return [other for group in groups if name in group for other in group - {name}]


def required_of(kind: str, model: type[Any], path: str) -> Document:
    """The smallest object of `model`; a union is left empty, since its key is put next."""
    return {
        name: required_of(kind, models_in(field.annotation)[0], f"{path}.{name}")
        if models_in(field.annotation)
        else SAMPLES.get(f"{path}.{name}", candidates(schema_at(kind, f"{path}.{name}"))[-1])
        for name, field in fields_by_wire_name(model).items()
        if field.is_required()
    }


def resolved(document: Document) -> TrainRun | ServeRun:
    resource = parse_resource(document)
    if isinstance(resource, ModelService):
        return resolve_serve_run(resource, make_resolve_settings(has_vllm=True), {})
    return resolve_train_run(resource, make_resolve_settings(), {})


def problems_of(document: Document) -> tuple[Problem, ...]:
    try:
        resolved(document)
    except InvalidSpec as refusal:
        return refusal.problems
    return ()


def is_inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith((f"{outer}.", f"{outer}["))


@pytest.mark.parametrize(("kind", "field", "value"), leaves())
def test_field_is_used_or_refused_or_for_the_cluster(kind: str, field: ApiField, value: Any):
    base = DOCUMENT_MAKERS[kind](**BASES[kind])
    context = copy.deepcopy(base)
    for key in (f"{kind} {field.path}={value}", f"{kind} {field.path}", f"{field.path}={value}", field.path):
        for path, other in GIVEN.get(key, {}).items():
            put(kind, context, path, other)
    open_block(kind, context, field.path)
    changed = copy.deepcopy(context)
    put(kind, changed, field.path, value)
    concrete = field.path.replace("[]", "[0]")
    problems = problems_of(changed)
    if problems:
        refused = [
            problem.path for problem in problems if problem.message.startswith(f"not supported yet: {problem.path}")
        ]
        assert any(is_inside(concrete, path) for path in refused), problems
    elif any(is_inside(field.path, outer) for outer in CLUSTER_ONLY[kind]):
        assert any(is_inside(concrete, path) for path in cluster_only_fields(parse_resource(changed)))
    else:
        before = base if problems_of(context) else context
        assert resolved(changed) != resolved(before), f"{field.path} is accepted and changes nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_leaf_without_a_value_fails(kind: str):
    for field in fields_of(kind):
        if field.nested is None:
            assert values_for(field, schema_at(kind, field.path)), f"{field.path} needs an entry in SAMPLES"


@pytest.mark.parametrize("entry", [*SAME_AS_DEFAULT, *GIVEN, *SAMPLES])
def test_tables_name_fields_that_exist(entry: str):
    path = entry.split(" ")[-1].split("=")[0]
    assert path in {field.path for kind in KINDS for field in fields_of(kind)}
