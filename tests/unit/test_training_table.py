"""The one table of what training reaches."""

import json

import pytest

import training_table


def record(figures, contended="no"):
    return {"figures": figures, "machine": {"contended": contended}}


def cells(what, records):
    (row,) = [row for row in training_table.ROWS if row.what == what]
    return training_table.line_of(row, records.get(row.script))


STALL = {"stall_seconds": {"median": 0.5}, "quiet_step_seconds": {"median": 2.0}, "stall_share_of_a_step": 0.25}


def test_a_row_has_both_sides_their_ratio_and_the_limit():
    peer = {"tokens_per_second": 1000, "ours_over_it": {"median": 1.3, "median_low": 1.2, "median_high": 1.4}}
    found = cells(
        "pretraining: Trainer, its defaults",
        {"train_peers": record({"ours": {"tokens_per_second": 1300}, "trainer": peer})},
    )
    assert found == (
        "pretraining: Trainer, its defaults", "1,300 tokens/s", "1,000 tokens/s", "1.30 (1.20-1.40)", ">= 1.2", ""
    )  # fmt: skip


@pytest.mark.parametrize(
    ("share", "contended", "note"),
    [
        (0.25, "no", ""),
        (1.5, "no", "missed"),
        (1.5, "others used this machine: absolute speeds are too low", "missed (machine was not quiet)"),
    ],
)
def test_what_misses_its_limit_is_told(share, contended, note):
    figures = {**STALL, "stall_share_of_a_step": share}
    found = cells("stall of a checkpoint: one step", {"checkpoint_stall": record(figures, contended)})
    assert found[-2:] == ("<= 1", note)


def test_what_was_not_measured_is_told():
    assert cells("LoRA: TRL with packing", {"tune_peers": record({"ours": {"tokens_per_second": 1}})})[1:4] == (
        "not measured", "", ""
    )  # fmt: skip
    lines = training_table.table({}).splitlines()
    assert [line for line in lines if "not measured" not in line] == lines[:1]


def test_the_records_that_are_kept_can_be_read():
    names = {row.script for row in training_table.ROWS}
    paths = [path for path in training_table.RESULTS.glob("*-cpu.json") if path.stem.removesuffix("-cpu") in names]
    assert paths
    records = {path.stem.removesuffix("-cpu"): json.loads(path.read_text()) for path in paths}
    for row in training_table.ROWS:
        if row.script in records:
            assert training_table.line_of(row, records[row.script])[1] != "not measured"
