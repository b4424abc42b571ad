"""The figures of a fault, from the lines that workers wrote."""

import json

import pytest

from faults import Faults, first_step_of_next, longest_pause, steps_done_twice


def step(number, time):
    return {"event": "step", "step": number, "time": time}


def started(number, time):
    return {"event": "started", "step": number, "time": time}


KILLED = [started(0, 0.5), step(1, 1.0), step(2, 2.0), step(3, 3.0), started(1, 50.0), step(2, 51.0), step(3, 52.0)]
SAVED = [started(0, 0.5), step(1, 1.0), step(2, 2.0), step(3, 3.0), started(3, 50.0), step(4, 51.5)]
CALM = [started(0, 0.5), step(1, 1.0), step(2, 2.0), step(3, 4.5), step(4, 5.0)]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(KILLED, 2, id="killed"),
        pytest.param(SAVED, 0, id="saved"),
        pytest.param(CALM, 0, id="not disturbed"),
        pytest.param([*KILLED, started(2, 60.0), step(3, 61.0)], 3, id="killed twice"),
    ],
)
def test_a_step_is_lost_when_it_is_done_again(events, expected):
    assert steps_done_twice(events, 2.5) == expected


def test_steps_that_an_earlier_fault_cost_do_not_count():
    assert steps_done_twice([*KILLED, step(4, 53.0)], 52.5) == 0


def test_the_next_step_is_the_first_of_the_next_attempt():
    assert first_step_of_next(KILLED, 2.5) == 51.0
    assert first_step_of_next(SAVED, 2.5) == 51.5


def test_a_pause_begins_with_the_last_step_before():
    assert longest_pause(CALM, 2.1) == 2.5
    assert longest_pause(CALM, 4.6) == 0.5


def test_the_table_has_a_row_for_each_fault_and_so_has_the_file(tmp_path):
    faults = Faults()
    faults.add("head pod deleted", reason="HeadLost", stepsLost=3, stepsLostByStatus=2, nextStepSeconds=90.5)
    faults.add("no-image", reason="ImagePullFailed", endKnownSeconds=4.0)
    heads, head, image = faults.table().splitlines()
    assert heads.split()[:4] == ["fault", "reason", "lost", "told"]
    assert head.split()[-4:] == ["HeadLost", "3", "2", "90.5"]
    assert image.split() == ["no-image", "ImagePullFailed", "4.0"]
    faults.write(tmp_path / "e2e" / "faults.json")
    assert json.loads((tmp_path / "e2e" / "faults.json").read_text()) == faults.records
