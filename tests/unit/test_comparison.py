"""The tables of what training and serving reach."""

import json

import pytest

import serving_table
import training_table
from comparison import Row, line_of, tell, tell_measured
from record import RESULTS


def record(figures, contended="no"):
    return {"figures": figures, "machine": {"contended": contended}}


ROWS = (*training_table.ROWS, *serving_table.ROWS)


def cells(what, records):
    (row,) = [row for row in ROWS if row.what == what]
    return line_of(row, records.get(row.script))


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


def test_what_has_no_limit_is_told_and_kept():
    row = Row("x", "default: peer", lambda figures: ("1", "2", {"median": 0.5}), None)
    assert line_of(row, record({})) == ("default: peer", "1", "2", "0.50", "", "")


def test_a_row_of_serving_has_the_sides_of_its_model():
    speeds = {"all": {"median": 1152.7}, "one": {"median": 1339.9}}
    found = cells(
        "8.4M, 32 adapters in a batch: one",
        {
            "serve_adapters": record(
                {"small": {"tokens_per_second": speeds, "all_over": {"one": {"median": 0.888}}}, "base": {}}
            )
        },
    )
    assert found == ("8.4M, 32 adapters in a batch: one", "1,153 tokens/s", "1,340 tokens/s", "0.89", ">= 0.7", "")


def test_one_clients_time_for_a_token_is_told_beside_that_of_a_bare_loop():
    small = {
        "one_client_seconds_per_token": {"ours": {"median": 0.0061}, "bare": {"median": 0.005}},
        "one_client_seconds_per_token_over_bare": {"median": 1.22},
    }
    found = cells("8.4M, one client's time for a token: a bare loop", {"serve_engine": record({"small": small})})
    assert found[1:] == ("6.10 ms", "5.00 ms", "1.22", "<= 1.2", "missed")


def test_what_was_not_measured_is_told_and_no_success(capsys):
    assert cells("LoRA: TRL with packing", {"tune_peers": record({"ours": {"tokens_per_second": 1}})})[1:4] == (
        "not measured", "", ""
    )  # fmt: skip
    assert not tell(ROWS, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(ROWS)
    assert [line for line in lines if "not measured" not in line] == lines[:1]


@pytest.mark.parametrize(("share", "kept"), [(0.25, True), (1.5, False)])
def test_a_script_tells_what_it_has_measured_only(share, kept, capsys):
    assert tell_measured(ROWS, "checkpoint_stall", {**STALL, "stall_share_of_a_step": share}) is kept
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("rows", [training_table.ROWS, serving_table.ROWS], ids=["training", "serving"])
def test_the_records_that_are_kept_can_be_read(rows: tuple[Row, ...]):
    names = {row.script for row in rows}
    paths = [path for path in RESULTS.glob("*-cpu.json") if path.stem.removesuffix("-cpu") in names]
    assert paths
    records = {path.stem.removesuffix("-cpu"): json.loads(path.read_text()) for path in paths}
    for row in rows:
        if row.script in records:
            assert line_of(row, records[row.script])[1] != "not measured"
