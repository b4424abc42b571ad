"""A status is written when something happened, and now and then while numbers creep."""

from datetime import UTC, datetime, timedelta

import pytest

from plinth_operator.status.report import should_write, status_patch

READ = datetime(2026, 3, 1, 12, tzinfo=UTC)
OLD = {
    "phase": "Training",
    "progress": {"step": 840, "percent": 42, "updatedAt": "2026-03-01T12:00:00Z"},
    "usage": {"gpus": 8, "gpuSeconds": 800, "wastedGpuSeconds": 0},
}


def changed(**fields):
    return {**OLD, **fields}


def progress(**fields):
    return changed(progress={**OLD["progress"], "updatedAt": "2026-03-01T12:00:20Z", **fields})


def usage(**fields):
    return changed(usage={**OLD["usage"], **fields})


@pytest.mark.parametrize(
    ("old", "new", "seconds", "expected"),
    [
        (None, OLD, 0, True),
        (OLD, OLD, 600, False),
        (OLD, changed(phase="Evaluating"), 0, True),
        (OLD, changed(checkpoint={"step": 800}), 0, True),
        (OLD, progress(step=841), 10, False),
        (OLD, progress(step=841), 29, False),
        (OLD, progress(step=841), 30, True),
        (OLD, progress(step=860, percent=43), 1, True),
        (OLD, progress(), 600, False),
        ({"phase": "Training"}, {"phase": "Training", "progress": {"step": 1}}, 0, True),
        (OLD, {key: value for key, value in OLD.items() if key != "progress"}, 0, True),
        ({"progress": {"step": 1}}, {"progress": {"step": 2}}, 0, True),
        (OLD, usage(gpuSeconds=1039), 29, False),
        (OLD, usage(gpuSeconds=1040), 30, True),
        (OLD, usage(wastedGpuSeconds=5), 0, True),
        (OLD, usage(gpus=4), 0, True),
        ({}, {"usage": {"gpus": 8}}, 0, True),
    ],
    ids=[
        "the first status",
        "nothing new",
        "another phase",
        "a checkpoint",
        "a step",
        "a step, 29 s later",
        "a step, 30 s later",
        "a percent",
        "read again with the same numbers",
        "the first progress",
        "progress that is gone",
        "progress without a time",
        "usage",
        "usage of 30 s",
        "wasted usage",
        "other GPUs",
        "the first usage",
    ],
)
def test_a_status_is_written_when_it_is_worth_it(old, new, seconds, expected):
    assert should_write(old, new, now=READ + timedelta(seconds=seconds)) is expected


def merged(target, patch):
    """RFC 7386, as the API server does it."""
    result = dict(target)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = merged(result[key] if isinstance(result.get(key), dict) else {}, value)
        else:
            result[key] = value
    return result


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (None, {"phase": "Pending"}, {"phase": "Pending"}),
        ({"phase": "Pending"}, {"phase": "Pending"}, {}),
        ({"a": 1, "b": 2}, {"a": 1}, {"b": None}),
        ({"p": {"x": 1, "y": 2}, "q": {"z": 1}}, {"p": {"x": 3}, "q": {"z": 1}}, {"p": {"x": 3, "y": None}}),
        ({"l": [1, 2]}, {"l": [1]}, {"l": [1]}),
        ({"p": "text"}, {"p": {"x": 1}}, {"p": {"x": 1}}),
        ({"p": {"x": 1}}, {"p": {}}, {"p": {"x": None}}),
    ],
    ids=["all is new", "the same", "gone", "inside", "a list is whole", "another type", "emptied"],
)
def test_the_patch_makes_the_old_status_the_new_one(old, new, expected):
    patch = status_patch(old, new)
    assert patch == expected
    assert merged(old or {}, patch) == new
