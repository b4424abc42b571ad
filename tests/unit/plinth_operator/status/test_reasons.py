"""One list of reasons: the code's, the workloads' and the documentation's are the same."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from plinth_operator.status.reasons import REASONS, Retry, retry_of
from plinth_workloads.errors import Reason

ROOT = Path(__file__).parents[4]
GUIDE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ENTRIES = re.split(r"^### ", GUIDE, flags=re.MULTILINE)[1:]


def reasons_in(path):
    """First arguments of Cause(...) and _ServeFailed(...) in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Cause", "_ServeFailed"):
            first = node.args[0]
            if isinstance(first, ast.Constant) and first.value:
                yield first.value


def test_every_reason_of_a_workload_is_listed():
    assert set(get_args(Reason)) <= set(REASONS)


def test_every_reason_that_is_written_anywhere_is_listed():
    files = [*(ROOT / "operator" / "plinth_operator").rglob("*.py"), ROOT / "workloads/plinth_workloads/serve.py"]
    written = {reason for path in files for reason in reasons_in(path)}
    assert {"Unschedulable", "ModelLoadFailed", "KubeRayMissing"} <= written
    assert written <= set(REASONS)


def test_every_reason_that_is_listed_is_written_somewhere():
    folders = (ROOT / "operator" / "plinth_operator", ROOT / "workloads" / "plinth_workloads")
    files = [path for folder in folders for path in folder.rglob("*.py") if path.name != "reasons.py"]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    words = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    # pod_causes.py puts it together from the kind that is missing.
    assert set(REASONS) - words == {"ConfigMapNotFound"}


def test_the_guide_has_one_entry_for_each_reason():
    assert sorted(entry.split("\n", 1)[0] for entry in ENTRIES) == sorted(REASONS)


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.split("\n", 1)[0] for entry in ENTRIES])
def test_an_entry_says_what_it_means_why_it_happens_and_what_to_do(entry):
    reason, text = entry.split("\n", 1)
    assert REASONS[reason].meaning in " ".join(text.split())
    assert "**Usual causes.**" in text
    assert "**What to do.**" in text
    words = {
        Retry.FINAL: "is not started again",
        Retry.BUDGET: "counts against `restart.maxRestarts`",
        Retry.FREE: "does not count",
    }
    assert words[REASONS[reason].retry] in " ".join(text.split())


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("UserCodeError", Retry.FINAL),
        ("CudaOutOfMemory", Retry.FINAL),
        ("NoProgress", Retry.BUDGET),
        ("StartupTimeout", Retry.BUDGET),
        ("NodeLost", Retry.BUDGET),
        ("HostOutOfMemory", Retry.BUDGET),
        ("Preempted", Retry.FREE),
        ("NeverHeardOf", Retry.BUDGET),
    ],
)
def test_who_is_to_blame_decides_whether_a_job_is_started_again(reason, expected):
    assert retry_of(reason) is expected
