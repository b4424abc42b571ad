"""What the operator reads of what a replica tells, in the words of the replica itself."""

import json
from datetime import UTC, datetime

import pytest

from plinth_api.service_state import AdapterState, ServiceState
from plinth_operator.facts import ReplicaState
from plinth_operator.serving import replica_state

NOW = datetime(2026, 1, 1, tzinfo=UTC)
URI = "models:/team-a.chat/3"


def read(**told):
    return replica_state(json.dumps(ServiceState(name="chat", target_uri=URI, **told).to_wire()).encode(), NOW)


def test_a_version_in_service_is_read_where_no_error_is_told():
    assert read(model_uri=URI, loaded=True) == ReplicaState(URI, URI, "", NOW)


def test_a_replica_that_could_not_load_has_no_version():
    assert read(model_uri=URI, loaded=True, api_keys=0) == ReplicaState(URI, URI, "", NOW, has_no_keys=True)
    assert read(model_uri=URI, loaded=True, api_keys=2) == ReplicaState(URI, URI, "", NOW)
    assert read(load_error="there is no such model") == ReplicaState("", URI, "there is no such model", NOW)


def test_adapters_are_those_that_answer_and_why_the_others_do_not():
    told = (
        AdapterState(name="docs", uri="models:/docs/2", target_uri="models:/docs/3", load_error="it is damaged"),
        AdapterState(name="tests", target_uri="models:/tests/1"),
    )
    found = read(model_uri=URI, loaded=True, adapters=told)
    assert found.adapters == (("docs", "models:/docs/2"),)
    assert found.adapter_errors == (("docs", "it is damaged"),)


def test_what_another_version_of_the_image_tells_besides_is_passed_over():
    told = {**ServiceState(target_uri=URI).to_wire(), "cacheHits": 3}
    assert replica_state(json.dumps(told).encode(), NOW).target_uri == URI


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"modelUri": 1}'])
def test_the_answer_of_something_else_is_refused(body):
    with pytest.raises(ValueError, match="ServiceState"):
        replica_state(body, NOW)
