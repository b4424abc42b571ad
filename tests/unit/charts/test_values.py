"""The chart's values and the operator's settings are the same list."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic.alias_generators import to_camel

from plinth_operator.settings import Settings

CHART = Path(__file__).parents[3] / "charts" / "plinth"
OF_THE_CHART = {"namespace", "operator_namespace", "probe_port", "probe_host"}
"""What the templates decide: scope, downward API, and the port that the probes ask."""

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
SETTINGS = Settings.model_json_schema()["properties"]


def test_every_setting_is_a_value_or_the_charts_own():
    assert set(SCHEMA["properties"]["settings"]["properties"]) == {
        to_camel(name) for name in SETTINGS.keys() - OF_THE_CHART
    }


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - OF_THE_CHART))
def test_a_value_has_the_type_and_the_bounds_of_its_setting(name):
    value = SCHEMA["properties"]["settings"]["properties"][to_camel(name)]
    bounds = ("type", "enum", "minimum", "maximum", "exclusiveMinimum")
    assert {key: value.get(key) for key in bounds} == {key: SETTINGS[name].get(key) for key in bounds}


def test_every_value_is_in_the_schema_and_the_other_way_round():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(SCHEMA["properties"]) == {*values, "global"}
    for name, value in values.items():
        if isinstance(value, dict) and SCHEMA["properties"][name].get("additionalProperties") is False:
            assert set(value) <= set(SCHEMA["properties"][name]["properties"])
