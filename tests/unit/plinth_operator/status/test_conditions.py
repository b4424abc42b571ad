"""Conditions keep their times, and every phase reads right for kstatus."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from plinth_api.status import JobPhase, ServicePhase
from plinth_operator.status.conditions import kstatus_conditions, set_condition

NOW = datetime(2026, 3, 1, 12, 0, 0, 500, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)


def test_a_new_condition_goes_to_the_end_with_whole_seconds():
    first = set_condition((), "Running", "False", "Queued", "waits", now=NOW, generation=1)
    both = set_condition(first, "Failed", "False", "Queued", "", now=LATER, generation=1)
    assert [condition.type for condition in both] == ["Running", "Failed"]
    assert both[0].last_transition_time == NOW.replace(microsecond=0)
    assert both[0].to_wire()["lastTransitionTime"] == "2026-03-01T12:00:00Z"


def test_a_condition_keeps_its_time_and_place_until_its_status_changes():
    before = set_condition((), "Running", "False", "Queued", "waits", now=NOW, generation=1)
    before = set_condition(before, "Failed", "False", "Queued", "", now=NOW, generation=1)
    other = set_condition(before, "Running", "False", "Starting", "pods", now=LATER, generation=2)
    assert other[0].last_transition_time == before[0].last_transition_time
    assert (other[0].reason, other[0].message, other[0].observed_generation) == ("Starting", "pods", 2)
    changed = set_condition(other, "Running", "True", "Training", "", now=LATER, generation=2)
    assert changed[0].last_transition_time == LATER.replace(microsecond=0)
    assert changed[1] is before[1]


def test_a_message_is_cut_to_what_a_condition_takes():
    assert len(set_condition((), "A", "True", "B", "x" * 40000, now=NOW, generation=None)[0].message) == 32768


PHASES = {
    "Pending": "FTF",
    "Queued": "FTF",
    "Starting": "FTF",
    "Training": "FTF",
    "Evaluating": "FTF",
    "Succeeded": "TFF",
    "Failed": "FFT",
    "Suspended": "FFF",
    "Ready": "TFF",
    "Updating": "TTF",
    "Degraded": "FTF",
}


def test_every_phase_is_known():
    assert set(PHASES) == {*get_args(JobPhase), *get_args(ServicePhase)}


@pytest.mark.parametrize(("phase", "expected"), PHASES.items(), ids=list(PHASES))
def test_a_phase_is_ready_reconciling_or_stalled(phase, expected):
    conditions = kstatus_conditions((), phase, "", "", now=NOW, generation=1)
    assert [condition.type for condition in conditions] == ["Ready", "Reconciling", "Stalled"]
    assert "".join(condition.status[0] for condition in conditions) == expected
    assert {condition.reason for condition in conditions} == {phase}


def test_who_knows_whether_requests_are_answered_says_so():
    degraded = kstatus_conditions((), "Degraded", "NodeLost", "gone", now=NOW, generation=1, ready=True)
    assert (degraded[0].status, degraded[0].reason, degraded[0].message) == ("True", "NodeLost", "gone")
    assert kstatus_conditions((), "Updating", "", "", now=NOW, generation=1, ready=False)[0].status == "False"
