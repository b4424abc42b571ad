"""Models on the wire, the words of URIs and quantities, and the status of a job whose loss is not a number."""

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from plinth_api.base import ApiModel, Condition, at_most_one_of, exactly_one_of, wire_name
from plinth_api.common import EnvVar
from plinth_api.parse import models_in
from plinth_api.quantity import parse_quantity
from plinth_api.status import EvaluationStatus, JobStatus, Progress
from plinth_api.uris import (
    is_registry_uri,
    local_path,
    mounted,
    pinned,
    registry_parts,
    registry_uri,
    scheme_of,
    unmounted,
)


class Shape(ApiModel):
    rules = (exactly_one_of("theSide", "radius"), at_most_one_of("radius", "color"))

    the_side: int | None = None
    radius: int | None = None
    color: str | None = None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({}, "exactly one of theSide, radius must be set", id="none"),
        pytest.param({"theSide": 1, "radius": 1}, "exactly one of theSide, radius must be set", id="both"),
        pytest.param({"radius": 1, "color": "red"}, "at most one of radius, color may be set", id="too many"),
    ],
)
def test_rule_is_checked(values: dict[str, object], message: str):
    with pytest.raises(ValidationError) as error:
        Shape.model_validate(values)
    assert error.value.errors()[0]["msg"] == message


def test_rule_in_cel():
    assert [rule.cel for rule in Shape.rules] == [
        "(has(self.theSide) ? 1 : 0) + (has(self.radius) ? 1 : 0) == 1",
        "(has(self.radius) ? 1 : 0) + (has(self.color) ? 1 : 0) <= 1",
    ]


def test_wire_form():
    assert wire_name(Shape, "the_side") == "theSide"
    assert Shape(the_side=2, color="red").to_wire() == {"theSide": 2, "color": "red"}
    assert models_in(tuple[EnvVar, ...] | None) == [EnvVar]


def test_status_has_no_numbers_that_json_lacks():
    nan = float("nan")
    status = JobStatus(
        progress=Progress(loss=nan, learning_rate=float("inf"), step=3),
        evaluation=EvaluationStatus(metrics={"loss": nan, "perplexity": 2.0}),
    )
    assert status.to_wire() == {
        "conditions": [],
        "attempts": [],
        "progress": {"step": 3},
        "evaluation": {"metrics": {"perplexity": 2.0}},
    }
    assert Progress(loss=2.5).loss == 2.5


def test_condition_on_the_wire():
    condition = Condition(
        type="Running",
        status="True",
        reason="Running",
        message="",
        last_transition_time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )
    assert condition.to_wire()["lastTransitionTime"] == "2026-01-02T03:04:05Z"


@pytest.mark.parametrize(
    ("quantity", "number"),
    [
        (8, 8.0),
        ("8", 8.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("500m", 0.5),
        ("2k", 2000.0),
        ("1Ki", 1024.0),
        ("96Gi", 96 * 2.0**30),
        ("1.5G", 1.5e9),
        ("2P", 2e15),
    ],
)
def test_quantity(quantity: int | str, number: float):
    assert parse_quantity(quantity) == number


def test_uris():
    assert scheme_of("models:/a/1") == "models"
    assert local_path("file:///a/b") == "/a/b"
    assert local_path("pvc://a/b") is None
    assert mounted("pvc://a/b", "/volumes/") == "file:///volumes/a/b"
    assert mounted("hf://a/b", "/volumes") == "hf://a/b"
    assert unmounted("file:///volumes/a/b", "/volumes/") == "pvc://a/b"
    assert unmounted("file:///other/a is not file:///volumes/a/b", "/volumes") == "file:///other/a is not pvc://a/b"
    assert registry_uri("models:/a@b", "") == "models:/a@b"
    assert registry_uri("models:/a@b", "n.") == "models:/n.a@b"
    assert registry_uri("models:/n.a@b", "n.") == "models:/n.a@b"
    assert pinned("models:/a@b", {"models:/a@b": "models:/a/3"}) == "models:/a/3"
    assert pinned("models:/a@b", {}) == "models:/a@b"


@pytest.mark.parametrize(
    ("uri", "parts"),
    [("models:/a/3", ("a", "3", None)), ("models:/n.a@b", ("n.a", None, "b"))],
)
def test_registry_parts(uri: str, parts: tuple[str, str | None, str | None]):
    assert is_registry_uri(uri)
    assert registry_parts(uri) == parts


@pytest.mark.parametrize("uri", ["models:/a", "models:/a/b", "models:/a/3/x", "models:/@b", "hf://a/3"])
def test_what_is_no_registry_uri(uri: str):
    assert not is_registry_uri(uri)
    with pytest.raises(ValueError, match="is not models:/<name>/<version>"):
        registry_parts(uri)
