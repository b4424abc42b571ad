"""The chart's values, their schema and their README are the same list, and so are the operator's settings."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic.alias_generators import to_camel

from plinth_operator.settings import Settings

CHART = Path(__file__).parents[3] / "charts" / "plinth"
OF_THE_CHART = {"namespace", "operator_namespace", "probe_port", "probe_host", "workload_image", "vllm_image"}
"""What the templates decide: scope, downward API, the port that the probes ask, and both images of workloads."""

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SETTINGS = Settings.model_json_schema()["properties"]
ROW = re.compile(r"^\| `(?P<name>[A-Za-z.]+)` \| `(?P<default>[^|]+)` \|", re.MULTILINE)


def leaves(values, schema, path=""):
    """Values by path; what the schema leaves open, such as resources, is one value."""
    for name, value in values.items():
        of_value = schema["properties"][name]
        if of_value.get("additionalProperties") is False:
            yield from leaves(value, of_value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def documented(title):
    """Names with defaults of the table of the README whose first column is called so."""
    text = (CHART / "README.md").read_text()
    (table,) = re.findall(rf"^\| {title} \| default \|.*?(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    rows = [(row["name"], json.loads(row["default"])) for row in ROW.finditer(table)]
    assert len(rows) == table.count("\n| `"), "a row that cannot be read"
    return rows


def test_every_setting_is_a_value_or_the_charts_own():
    assert set(SCHEMA["properties"]["settings"]["properties"]) == {
        to_camel(name) for name in SETTINGS.keys() - OF_THE_CHART
    }


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - OF_THE_CHART))
def test_a_value_has_the_type_and_the_bounds_of_its_setting(name):
    value = SCHEMA["properties"]["settings"]["properties"][to_camel(name)]
    bounds = ("type", "enum", "minimum", "maximum", "exclusiveMinimum")
    assert {key: value.get(key) for key in bounds} == {key: SETTINGS[name].get(key) for key in bounds}


def missing(values, schema, path=""):
    """Paths that only one of the two has; settings that are left out have their defaults in the operator."""
    if schema.get("additionalProperties") is not False:
        return set()
    names, known = set(values), set(schema["properties"])
    left_out = known - names if path != "settings." else set()
    found = {f"{path}{name}" for name in (names - known) | left_out}
    for name in names & known:
        if isinstance(values[name], dict):
            found |= missing(values[name], schema["properties"][name], f"{path}{name}.")
    return found


def test_every_value_is_in_the_schema_and_the_other_way_round():
    assert missing(VALUES, SCHEMA) == {"global"}


def test_the_readme_has_every_value_with_its_default_in_their_order():
    assert documented("value") == list(leaves(VALUES, SCHEMA))


def test_the_readme_has_the_other_settings_with_the_defaults_of_the_operator():
    others = {to_camel(name): field["default"] for name, field in SETTINGS.items() if name not in OF_THE_CHART}
    assert dict(documented("setting")) == {
        name: default for name, default in others.items() if name not in VALUES["settings"]
    }
