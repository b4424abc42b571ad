"""The CRDs: structural, bounded, small, and the files in the repository are what the models give."""

import runpy
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import yaml
from pydantic import Field

from plinth_api import generate
from plinth_api.base import ApiModel, FreeForm, Rule
from plinth_api.crd import (
    HEADER,
    MAX_CRD_BYTES,
    NAMING,
    Schema,
    SchemaError,
    crd,
    crd_yaml,
    crd_yaml_files,
    structural_schema,
)
from plinth_api.crd import resource_schema as fresh_schema
from plinth_api.job import MUTABLE_FIELDS
from plinth_api.parse import KINDS

KNOWN = {
    "additionalProperties",
    "default",
    "description",
    "enum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "pattern",
    "properties",
    "required",
    "type",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
}


@cache
def resource_schema(kind: str) -> Schema:
    """One for all tests that only read it."""
    return fresh_schema(kind)


def nodes(schema: Schema, path: str = "") -> list[tuple[str, Schema]]:
    """Every schema inside `schema`, with its path."""
    inner = list(schema.get("properties", {}).items())
    inner += [("[]", schema[key]) for key in ("items", "additionalProperties") if key in schema]
    return [(path, schema), *(node for name, child in inner for node in nodes(child, f"{path}.{name}"))]


@pytest.mark.parametrize("kind", KINDS)
def test_schema_has_known_keywords_only(kind: str):
    for path, schema in nodes(resource_schema(kind)):
        assert schema.keys() <= KNOWN, path


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_has_a_type_a_bound_and_a_description(kind: str):
    for path, schema in nodes(resource_schema(kind)["properties"]["spec"]):
        assert ("type" in schema) != ("x-kubernetes-int-or-string" in schema), path
        if schema.get("type") == "string":
            assert schema.keys() & {"maxLength", "enum"}, path
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
        if not path.endswith("[]"):
            assert schema["description"], path


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_hold_no_nulls(kind: str):
    for path, schema in nodes(resource_schema(kind)):
        assert "null" not in yaml.safe_dump(schema.get("default", 0)), path


@pytest.mark.parametrize("kind", KINDS)
def test_status_demands_nothing(kind: str):
    for path, schema in nodes(resource_schema(kind)["properties"]["status"]):
        assert not schema.keys() & {"enum", "minimum", "maximum", "minLength", "pattern", "default"}, path
        if "required" in schema:
            assert schema["required"] == ["type"]
            assert path == ".conditions.[]"


@pytest.mark.parametrize("kind", KINDS)
def test_crd_names_its_kind(kind: str):
    document = crd(kind)
    (version,) = document["spec"]["versions"]
    assert document["metadata"]["name"] == f"{document['spec']['names']['plural']}.plinth.dev"
    assert document["spec"]["names"]["kind"] == kind
    assert (version["name"], version["served"], version["storage"]) == ("v1alpha1", True, True)
    assert version["subresources"] == {"status": {}}
    assert version["additionalPrinterColumns"] == list(NAMING[kind].columns)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_show_fields_that_exist(kind: str):
    schema = fresh_schema(kind)
    schema["properties"]["metadata"] = {"properties": {"creationTimestamp": {"type": "date"}}}
    for column in NAMING[kind].columns:
        found = schema
        for part in str(column["jsonPath"]).strip(".").split("."):
            found = found["properties"][part]
        assert found["type"] == column["type"]


@pytest.mark.parametrize("kind", ["PretrainJob", "FineTuneJob"])
def test_each_field_but_the_mutable_ones_is_frozen(kind: str):
    schema = resource_schema(kind)
    frozen = {rule["fieldPath"] for rule in schema["x-kubernetes-validations"] if "oldSelf" in rule["rule"]}
    assert frozen == {f".spec.{field}" for field in schema["properties"]["spec"]["properties"]} - {
        f".spec.{field}" for field in MUTABLE_FIELDS
    }


def test_a_service_may_change():
    assert "oldSelf" not in crd_yaml("ModelService")


def test_rules_lie_on_the_object_that_they_speak_of():
    training = resource_schema("PretrainJob")["properties"]["spec"]["properties"]["training"]
    assert training["x-kubernetes-validations"] == [
        {
            "rule": "(has(self.steps) ? 1 : 0) + (has(self.epochs) ? 1 : 0) + (has(self.tokens) ? 1 : 0) == 1",
            "message": "exactly one of steps, epochs, tokens must be set",
        }
    ]


def test_quantity_free_form_and_union_default():
    spec = resource_schema("FineTuneJob")["properties"]["spec"]["properties"]
    cpus = spec["compute"]["properties"]["perWorker"]["properties"]["cpus"]
    assert cpus["x-kubernetes-int-or-string"] is True
    assert "type" not in cpus
    assert spec["compute"]["properties"]["podTemplate"] == {
        "description": spec["compute"]["properties"]["podTemplate"]["description"],
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
    }
    assert list(spec["method"]["default"]) == ["lora"]


def test_files_are_small_and_free_of_anchors():
    for text in crd_yaml_files().values():
        assert text.startswith(HEADER)
        assert len(text.encode()) < MAX_CRD_BYTES
        assert "&id" not in text
        assert "$ref" not in text


def test_too_large_a_crd_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("plinth_api.crd.MAX_CRD_BYTES", 1000)
    with pytest.raises(SchemaError, match="the CRD of PretrainJob is larger"):
        crd_yaml("PretrainJob")


class Inner(ApiModel):
    rules: ClassVar[tuple[Rule, ...]] = (Rule(cel="self.a == 1", check=lambda model: True, message="a is 1"),)

    a: int = 1


class Outer(ApiModel):
    const: Literal["x"] = "x"
    inner: Inner | None = Field(default=None, description="outer words win.")
    words: Annotated[dict[str, Annotated[str, Field(max_length=9)]], Field(max_length=3)]
    free: FreeForm | None = None


def test_conversion():
    assert structural_schema(Outer)["properties"] == {
        "const": {"type": "string", "enum": ["x"], "default": "x"},
        "inner": {
            "description": "outer words win.",
            "type": "object",
            "properties": {"a": {"type": "integer", "default": 1}},
            "x-kubernetes-validations": [{"rule": "self.a == 1", "message": "a is 1"}],
        },
        "words": {
            "type": "object",
            "maxProperties": 3,
            "additionalProperties": {"type": "string", "maxLength": 9},
        },
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    }


def model_with(annotation: Any) -> type[ApiModel]:
    return type("Wrong", (ApiModel,), {"__annotations__": {"field": annotation}, "__module__": __name__})


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        pytest.param(Annotated[int, Field(gt=0)], "exclusiveMinimum", id="exclusive bound"),
        pytest.param(Annotated[int, Field(multiple_of=2)], "multipleOf", id="multiple"),
        pytest.param(tuple[int, str], "prefixItems", id="tuple of fixed length"),
        pytest.param(int | str, "union", id="union of types"),
        pytest.param(str, "string without a bound", id="string without maxLength"),
        pytest.param(str | None, "string without a bound", id="optional string without maxLength"),
        pytest.param(tuple[int, ...], "array without a bound", id="list without maxItems"),
        pytest.param(dict[str, int], "object without a bound", id="map without maxProperties"),
        pytest.param(Annotated[dict[str, str], Field(max_length=2)], "string without", id="unbounded values of a map"),
        pytest.param(Any, "no type", id="anything"),
    ],
)
def test_what_a_structural_schema_cannot_say_is_an_error(annotation: Any, message: str):
    with pytest.raises(SchemaError, match=rf"\.field.*{message}"):
        structural_schema(model_with(annotation))


def test_generated_files_are_up_to_date(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["generate", "--check"])
    monkeypatch.delitem(sys.modules, "plinth_api.generate")
    with pytest.raises(SystemExit) as end:
        runpy.run_module("plinth_api.generate", run_name="__main__")
    assert (end.value.code, capsys.readouterr().err) == (0, "")


def test_generate_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert generate.main(["--check", "--root", str(tmp_path)]) == 1
    assert "docs/api.md is not up to date; run `make generate`" in capsys.readouterr().err
    assert generate.main(["--root", str(tmp_path)]) == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if path.is_file()) == sorted(
        generate.generated_files()
    )
    (tmp_path / "docs/api.md").write_text("by hand")
    assert list(generate.drifted_files(tmp_path)) == ["docs/api.md"]
