"""From an MLflow run to progress, checkpoint, evaluation and model."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from plinth_api.status import EvaluationStatus
from plinth_operator.facts import RunFacts
from plinth_operator.status.progress import (
    checkpoint_from_run,
    duration,
    evaluation_from_run,
    model_from_run,
    progress_from_run,
)

STARTED = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW = STARTED + timedelta(seconds=600, microseconds=7)


def run(step=None, *, metrics=None, read_at=None, step_at=None, saved=(None, None), **tags):
    tags = {f"plinth.{name}": value for name, value in tags.items()}
    facts = RunFacts("r1", "7", status="RUNNING", step=step, step_at=step_at, metrics=metrics or {}, tags=tags)
    return replace(facts, read_at=read_at, saved_step=saved[0], saved_at=saved[1])


def at(seconds):
    return STARTED + timedelta(seconds=seconds)


def test_progress_has_strings_for_people_and_numbers_for_programs():
    metrics = {"train/loss": 2.31, "train/lr": 2.6e-4, "train/tokens_per_sec": 81203.6, "train/tokens": 55050240.0}
    since = at(380).isoformat()
    found = run(840, step_at=at(600), metrics=metrics, totalSteps="2000", startStep="400", trainingSince=since)
    progress = progress_from_run(found, now=NOW)
    assert progress is not None
    assert progress.to_wire() == {
        "steps": "840/2000",
        "percentage": "42%",
        "eta": "9m",
        "step": 840,
        "totalSteps": 2000,
        "percent": 42,
        "etaSeconds": 580,
        "loss": 2.31,
        "learningRate": 2.6e-4,
        "tokensPerSecond": 81204,
        "tokens": 55050240,
        "updatedAt": "2026-03-01T12:10:00Z",
    }


def test_the_pace_is_that_of_the_steps_whenever_they_are_read():
    found = run(50, step_at=at(100), read_at=at(130), totalSteps="100", trainingSince=at(0).isoformat())
    progress = progress_from_run(found, now=NOW)
    assert progress is not None
    assert (progress.eta_seconds, progress.eta, progress.updated_at) == (100, "1m", at(130))


SINCE = {"totalSteps": "2000", "trainingSince": STARTED.isoformat(), "step_at": at(600)}


@pytest.mark.parametrize(
    ("found", "steps", "percent", "eta"),
    [
        (run(None, totalSteps="2000"), "0/2000", 0, None),
        (run(None, totalSteps="2000", startStep="400"), "400/2000", 20, None),
        (run(400, **SINCE, startStep="400"), "400/2000", 20, None),
        (run(840, step_at=at(600), totalSteps="2000"), "840/2000", 42, None),
        (run(840, **SINCE | {"trainingSince": at(700).isoformat()}), "840/2000", 42, None),
        (run(840, **SINCE | {"trainingSince": "noon"}), "840/2000", 42, None),
        (run(840, **SINCE | {"trainingSince": "2026-03-01T12:00:00"}), "840/2000", 42, None),
        (run(840, **SINCE | {"step_at": None}), "840/2000", 42, None),
        (run(840), "840", None, None),
        (run(2000, **SINCE), "2000/2000", 100, "0s"),
        (run(2001, **SINCE), "2001/2000", 100, "0s"),
        (run(5, totalSteps="many"), "5", None, None),
    ],
    ids=[
        "before the first step",
        "resumed, before the first step",
        "resumed, no new step",
        "a beginning that nobody has told",
        "a step of an earlier attempt",
        "a beginning that is no time",
        "a beginning in no time zone",
        "a step without a time",
        "no total",
        "done",
        "one step more",
        "a total that is no number",
    ],
)
def test_what_is_not_known_is_left_out(found, steps, percent, eta):
    progress = progress_from_run(found, now=NOW)
    assert progress is not None
    assert (progress.steps, progress.percent, progress.eta) == (steps, percent, eta)


def test_a_run_that_says_nothing_has_no_progress():
    assert progress_from_run(run(metrics={"train/loss": 1.0}), now=NOW) is None


def test_a_column_is_not_as_wide_as_a_float():
    metrics = {"train/loss": 6.02365779876709, "train/lr": 0.000123456789}
    progress = progress_from_run(run(25, metrics=metrics), now=NOW)
    assert progress is not None
    assert (progress.loss, progress.learning_rate) == (6.0237, 0.00012346)


def test_numbers_that_json_has_no_word_for_are_left_out():
    metrics = {"train/loss": math.nan, "train/tokens": math.inf, "train/tokens_per_sec": -1.0}
    progress = progress_from_run(run(1, metrics=metrics), now=NOW)
    assert progress is not None
    assert (progress.loss, progress.tokens, progress.tokens_per_second) == (None, None, None)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0s"), (45, "45s"), (60, "1m"), (1020, "17m"), (7500, "2h5m"), (3600, "1h0m"), (273600, "3d4h")],
)
def test_a_duration_is_short(seconds, expected):
    assert duration(seconds) == expected


def test_the_checkpoint_needs_its_step_and_its_place():
    checkpoint = checkpoint_from_run(run(checkpointStep="800", checkpointUri="file:///c/step-800"))
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.uri, checkpoint.time) == (800, "file:///c/step-800", None)
    assert checkpoint_from_run(run(checkpointStep="800")) is None
    assert checkpoint_from_run(run(checkpointUri="file:///c")) is None


@pytest.mark.parametrize(("saved", "time"), [(800, at(90)), (700, None)], ids=["its save", "the save before"])
def test_the_checkpoint_has_the_time_of_its_own_save(saved, time):
    tags = {"checkpointStep": "800", "checkpointUri": "file:///c/step-800"}
    checkpoint = checkpoint_from_run(run(saved=(saved, at(90)), **tags))
    assert checkpoint is not None
    assert checkpoint.time == time


def test_the_evaluation_has_its_metrics_and_the_verdict():
    tags = {"gate": "Passed", "metric.perplexity": "18.2", "metric.loss": "nan", "metric.bleu": "high"}
    evaluation = evaluation_from_run(run(**tags))
    assert evaluation == EvaluationStatus(metrics={"perplexity": 18.2}, gate="Passed")
    assert evaluation_from_run(run()) is None
    assert evaluation_from_run(run(gate="Odd")) == EvaluationStatus()


def test_no_more_metrics_are_shown_than_the_status_takes():
    evaluation = evaluation_from_run(run(**{f"metric.m{n:03}": "1" for n in range(100)}))
    assert evaluation is not None
    assert len(evaluation.metrics) == 64


def test_the_model_needs_its_name_and_version():
    model = model_from_run(run(modelName="team-a.pycode", modelVersion="3"))
    assert model is not None
    assert model.uri == "models:/team-a.pycode/3"
    assert model_from_run(run(modelName="team-a.pycode")) is None
