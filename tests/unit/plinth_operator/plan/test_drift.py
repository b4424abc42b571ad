"""When a child is applied again."""

import json
from typing import Any

import pytest

from plinth_operator.constants import HASH_ANNOTATION
from plinth_operator.facts import ObjectFacts
from plinth_operator.plan.drift import changed_children, differs, holds


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
        pytest.param({}, {"a": [], "b": {}, "c": {"d": []}}, True, id="so are lists and objects with nothing in them"),
        pytest.param({}, {"a": [""]}, False, id="a list with an item is not empty"),
        pytest.param({"limits": {"cpu": "1"}}, {"limits": {"cpu": "1000m"}}, True, id="a quantity in other words"),
        pytest.param({"limits": {"cpu": "1"}}, {"limits": {"cpu": 1}}, True, id="a quantity written as a number"),
        pytest.param({"emptyDir": {"sizeLimit": "1Gi"}}, {"emptyDir": {"sizeLimit": "1024Mi"}}, True, id="a size"),
        pytest.param({"limits": {"cpu": "2"}}, {"limits": {"cpu": "1000m"}}, False, id="another quantity"),
        pytest.param({"limits": {"cpu": "1"}}, {"limits": {"cpu": "much"}}, False, id="a word is no quantity"),
        pytest.param({"value": "1"}, {"value": "1000m"}, False, id="what is no quantity is compared as text"),
        pytest.param({"a": "text"}, {"a": {"b": 1}}, False, id="a text is no object"),
        pytest.param({"a": {}}, {"a": [1]}, False, id="an object is no list"),
    ],
)
def test_holds(actual: Any, wanted: Any, expected: bool):
    assert holds(actual, wanted) is expected


KINDS = ("ConfigMap", "NetworkPolicy")
WANTED: Any = {"kind": "Ingress", "metadata": {"annotations": {HASH_ANNOTATION: "h1"}}, "spec": {"a": 1}}


def known(**fields: Any) -> ObjectFacts:
    made = {"kind": "NetworkPolicy", "hash": "h1", **fields}
    return ObjectFacts(namespace="team-a", name="tiny", uid="u", owner_uid="uid-1", resource_version=1, **made)


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


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param({"selector": {"uid": "u"}}, False, id="the same policy"),
        pytest.param({"selector": {"uid": "u", "app": "other"}}, True, id="a label more selects other pods"),
        pytest.param({"selector": {}}, True, id="a label less selects more pods"),
        pytest.param({"selector": {"uid": "u"}, "egress": []}, False, id="a field that we do not set"),
    ],
)
def test_a_network_policy_is_as_we_set_it_to_the_letter(spec: Any, expected: bool):
    wanted = {**WANTED, "kind": "NetworkPolicy", "spec": {"selector": {"uid": "u"}}}
    assert differs(known(spec=json.dumps(spec)), wanted) is expected


def test_what_is_immutable_and_outdated_is_deleted_first():
    config, policy = ({**WANTED, "kind": kind, "metadata": {**WANTED["metadata"], "name": "tiny"}} for kind in KINDS)
    there = [known(kind="ConfigMap", hash="h0"), known(hash="h0")]
    changed, stale = changed_children([{**config, "immutable": True}, policy], there)
    assert [child["kind"] for child in changed] == list(KINDS)
    assert stale == (there[0],)
    assert changed_children([{**config, "immutable": True}], [known(kind="ConfigMap")]) == ((), ())
