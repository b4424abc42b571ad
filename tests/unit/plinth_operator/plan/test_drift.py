"""When a child is applied again."""

import json
from typing import Any

import pytest

from plinth_operator.constants import HASH_ANNOTATION
from plinth_operator.facts import ObjectFacts
from plinth_operator.plan.drift import differs, holds


@pytest.mark.parametrize(
    ("actual", "wanted", "expected"),
    [
        pytest.param({"a": 1}, {"a": 1}, True, id="the same"),
        pytest.param({"a": 1, "b": 2}, {"a": 1}, True, id="a field that others have added is left alone"),
        pytest.param({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, True, id="inside of an object too"),
        pytest.param({"a": 2}, {"a": 1}, False, id="another value"),
        pytest.param({}, {"a": 1}, False, id="a field that was removed"),
        pytest.param({}, {"a": ""}, True, id="an empty text is left out by the API server"),
        pytest.param({}, {"a": False, "b": 0}, True, id="so are false and zero"),
        pytest.param({"a": [{"b": 1, "x": 9}]}, {"a": [{"b": 1}]}, True, id="items of a list may have more fields"),
        pytest.param({"a": [1, 2]}, {"a": [1]}, False, id="a list may not have more items"),
        pytest.param({"a": [2, 1]}, {"a": [1, 2]}, False, id="the order of a list counts"),
        pytest.param({"a": "text"}, {"a": {"b": 1}}, False, id="a text is no object"),
        pytest.param({"a": {}}, {"a": [1]}, False, id="an object is no list"),
    ],
)
def test_holds(actual: Any, wanted: Any, expected: bool):
    assert holds(actual, wanted) is expected


WANTED = {"metadata": {"annotations": {HASH_ANNOTATION: "h1"}}, "spec": {"a": 1}}


def known(**fields: Any) -> ObjectFacts:
    return ObjectFacts("NetworkPolicy", "team-a", "tiny", "u", "uid-1", 1, **{"hash": "h1", **fields})


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param(None, True, id="an object that does not exist is made"),
        pytest.param(known(), False, id="one with our hash whose spec is not kept is as wanted"),
        pytest.param(known(hash="h0"), True, id="one with another hash is applied"),
        pytest.param(known(hash=""), True, id="one without a hash is applied"),
        pytest.param(known(spec=json.dumps({"a": 1, "more": 2})), False, id="what others added does not matter"),
        pytest.param(known(spec=json.dumps({"a": 2})), True, id="an edit by hand is undone"),
    ],
)
def test_differs(facts: ObjectFacts | None, expected: bool):
    assert differs(facts, WANTED) is expected
