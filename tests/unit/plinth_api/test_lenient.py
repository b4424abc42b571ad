"""What another version of Plinth has written is read as far as it is understood."""

import copy

import pytest

from makers import fine_tune_document, pretrain_document, service_document
from plinth_api.lenient import read_leniently
from plinth_api.parse import parse_resource, readable_part
from plinth_api.status import JobStatus, ServiceStatus

STARTED = "2026-01-01T00:00:00Z"


def test_a_status_that_is_understood_is_read_whole():
    status = {"phase": "Training", "reason": "", "attempts": [{"number": 1, "rayJob": "a", "startedAt": STARTED}]}
    assert read_leniently(JobStatus, status) == JobStatus.model_validate_json(
        '{"phase":"Training","reason":"","attempts":[{"number":1,"rayJob":"a","startedAt":"2026-01-01T00:00:00Z"}]}'
    )


def test_a_word_that_is_not_known_is_left_out_and_the_rest_is_kept():
    status = {"phase": "Compiling", "message": "m", "evaluation": {"gate": "Perhaps", "metrics": {"loss": 1.0}}}
    read = read_leniently(JobStatus, status)
    assert (read.phase, read.message) == (None, "m")
    assert (read.evaluation.gate, read.evaluation.metrics) == (None, {"loss": 1.0})


def test_an_item_that_lacks_what_it_needs_is_left_out_of_its_list():
    status = {"attempts": [{"number": 1}, {"rayJob": "b"}, {"number": "three"}, {"number": 4}]}
    assert [attempt.number for attempt in read_leniently(JobStatus, status).attempts] == [1, 4]


def test_the_document_is_left_as_it_is():
    status = {"phase": "Compiling"}
    before = copy.deepcopy(status)
    read_leniently(ServiceStatus, status)
    assert status == before


@pytest.mark.parametrize("nothing", [[], "text", 3])
def test_what_is_no_object_at_all_cannot_be_read(nothing):
    assert read_leniently(JobStatus, nothing) is None


@pytest.mark.parametrize(
    "document",
    [
        pretrain_document(training={"precision": "fp16", "removed": {"a": 1}}, compute={"workers": 2}),
        fine_tune_document(added=True, compute={"workers": 2}),
    ],
)
def test_a_spec_with_fields_that_are_not_known_keeps_the_others(document):
    assert readable_part(document).spec.compute.workers == 2


def test_a_spec_that_is_understood_is_the_same_either_way():
    document = service_document(scaling={"maxReplicas": 3})
    assert readable_part(document) == parse_resource(document)


def test_a_spec_without_what_it_cannot_be_without_is_not_readable():
    assert readable_part(pretrain_document(output=None)) is None
    assert readable_part(pretrain_document(name="N")) is None
