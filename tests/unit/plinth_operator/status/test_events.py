"""Which changes of a status become an Event, and what it says."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from plinth_operator.status.events import event_of, rollout_event_of
from plinth_operator.store import Key

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
KEY = Key("PretrainJob", "team-a", "tiny")
STARTING = {"phase": "Starting", "reason": "", "message": ""}


def told(old: dict[str, Any], new: dict[str, Any], now: datetime = NOW) -> dict[str, Any] | None:
    return event_of(KEY, "uid-1", old, new, now=now)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param({}, {"phase": "Pending"}, ("Normal", "Pending", "Pending"), id="the first phase"),
        pytest.param(
            STARTING, {"phase": "Training"}, ("Normal", "Training", "Starting -> Training"), id="the next phase"
        ),
        pytest.param(
            STARTING,
            {"phase": "Starting", "reason": "Unschedulable", "message": "no node"},
            ("Warning", "Unschedulable", "no node"),
            id="a new reason is a warning",
        ),
        pytest.param(
            {"phase": "Ready", "reason": ""},
            {"phase": "Ready", "reason": "ScaledToZero", "message": "nobody asks"},
            ("Normal", "ScaledToZero", "nobody asks"),
            id="a service that needs no replica is well",
        ),
        pytest.param(
            STARTING,
            {"phase": "Failed", "reason": "LossNaN", "message": "loss is NaN"},
            ("Warning", "LossNaN", "Starting -> Failed: loss is NaN"),
            id="a failure is a warning",
        ),
        pytest.param(
            {"phase": "Pending"},
            {"phase": "Starting", "attempts": [{"number": 1, "finishedAt": "x"}, {"number": 2, "rayJob": "tiny-2"}]},
            ("Normal", "Starting", "Pending -> Starting: attempt 2, RayJob tiny-2"),
            id="the attempt that runs is named",
        ),
        pytest.param(
            {"phase": "Pending"},
            {"phase": "Suspended", "attempts": [{"number": 1, "rayJob": "tiny-1", "finishedAt": "x"}]},
            ("Normal", "Suspended", "Pending -> Suspended"),
            id="one that has ended is not",
        ),
    ],
)
def test_a_change_of_phase_or_reason_is_told(old: dict[str, Any], new: dict[str, Any], expected: tuple[str, str, str]):
    event = told(old, new)
    assert event is not None
    assert (event["type"], event["reason"], event["message"]) == expected
    assert event["involvedObject"] == {
        "apiVersion": "plinth.dev/v1alpha1",
        "kind": "PretrainJob",
        "namespace": "team-a",
        "name": "tiny",
        "uid": "uid-1",
    }
    assert event["metadata"]["namespace"] == "team-a"
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2026-03-01T12:30:00Z"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="nothing changed"),
        pytest.param({"message": "other words"}, id="only the message changed"),
        pytest.param({"progress": {"step": 3}}, id="only the progress changed"),
    ],
)
def test_anything_else_is_not_told(change: dict[str, Any]):
    assert told(STARTING, {**STARTING, **change}) is None


def test_a_transition_told_twice_is_one_event_and_a_later_one_another():
    new = {"phase": "Training"}
    first, second = told(STARTING, new), told(STARTING, new)
    later = told(STARTING, new, NOW + timedelta(minutes=1))
    assert first == second
    assert first is not None
    assert later is not None
    assert first["metadata"]["name"] != later["metadata"]["name"]


def test_a_long_message_is_cut():
    event = told(STARTING, {"phase": "Failed", "reason": "UserCodeError", "message": "x" * 5000})
    assert event is not None
    assert len(event["message"]) == 1024


ROLLOUT = {"phase": "Progressing", "weight": 10, "candidate": {"uri": "models:/m/4"}, "message": "is being loaded"}


@pytest.mark.parametrize(
    ("old", "changes", "expected"),
    [
        pytest.param(None, {}, ("Normal", "CanaryProgressing", "is being loaded"), id="the first step"),
        pytest.param(ROLLOUT, {"weight": 50}, ("Normal", "CanaryProgressing", "is being loaded"), id="the next step"),
        pytest.param(
            ROLLOUT,
            {"phase": "RolledBack", "weight": 0, "message": "too slow"},
            ("Warning", "CanaryRolledBack", "too slow"),
            id="taken back",
        ),
        pytest.param(ROLLOUT, {"message": "30 requests"}, None, id="numbers are none"),
    ],
)
def test_each_step_of_a_rollout_is_told(old: Any, changes: dict[str, Any], expected: tuple[str, str, str] | None):
    before = {"phase": "Updating"} | ({"rollout": old} if old else {})
    event = rollout_event_of(KEY, "uid-1", before, {"phase": "Updating", "rollout": {**ROLLOUT, **changes}}, now=NOW)
    assert (event and (event["type"], event["reason"], event["message"])) == expected
