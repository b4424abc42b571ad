"""What Argo CD makes of a resource: the chart's Lua, run as Argo CD runs it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lupa
import pytest

from plinth_operator.status.conditions import kstatus_conditions, set_condition

SCRIPT = Path(__file__).parents[3] / "charts" / "plinth" / "argocd" / "health.lua"
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def health(resource: dict[str, Any]) -> tuple[str, str]:
    lua = lupa.LuaRuntime()
    lua.globals().obj = lua.table_from(resource, recursive=True)
    answer = lua.execute(SCRIPT.read_text(encoding="utf-8"))
    return answer["status"], answer["message"]


def resource(phase, *, reason="", message="", generation=1):
    conditions = kstatus_conditions((), phase, reason, message, now=NOW, generation=1)
    suspended = "True" if phase == "Suspended" else "False"
    conditions = set_condition(conditions, "Suspended", suspended, phase, "", now=NOW, generation=1)
    status = {"phase": phase, "reason": reason, "message": message, "observedGeneration": 1}
    return {
        "metadata": {"generation": generation},
        "status": {**status, "conditions": [condition.to_wire() for condition in conditions]},
    }


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("Pending", "Progressing"),
        ("Queued", "Progressing"),
        ("Starting", "Progressing"),
        ("Training", "Progressing"),
        ("Evaluating", "Progressing"),
        ("Succeeded", "Healthy"),
        ("Failed", "Degraded"),
        ("Suspended", "Suspended"),
        ("Ready", "Healthy"),
        ("Updating", "Progressing"),
        ("Degraded", "Degraded"),
    ],
)
def test_a_phase_has_its_health(phase, expected):
    assert health(resource(phase)) == (expected, phase)


def test_the_message_has_the_reason_and_its_sentence():
    found = health(resource("Failed", reason="LossNaN", message="the loss is NaN at step 12"))
    assert found == ("Degraded", "Failed (LossNaN): the loss is NaN at step 12")


@pytest.mark.parametrize("unseen", [{"metadata": {}}, {"metadata": {}, "status": {"phase": "Pending"}}])
def test_a_resource_that_was_not_seen_yet_is_progressing(unseen):
    assert health(unseen) == ("Progressing", "Plinth has not seen it yet")


def test_the_health_of_an_older_spec_does_not_count():
    assert health(resource("Ready", generation=2)) == ("Progressing", "Plinth has not seen the last change yet")


def test_no_condition_that_holds_is_progressing():
    unknown = resource("Ready")
    unknown["status"]["conditions"] = []
    assert health(unknown)[0] == "Progressing"
