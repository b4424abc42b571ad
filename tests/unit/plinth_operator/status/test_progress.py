"""From an MLflow run to progress, checkpoint, evaluation and model."""

import math
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


def run(step=None, *, metrics=None, read_at=None, **tags):
    tags = {f"plinth.{name}": value for name, value in tags.items()}
    return RunFacts("r1", "7", status="RUNNING", step=step, metrics=metrics or {}, tags=tags, read_at=read_at)


def test_progress_has_strings_for_people_and_numbers_for_programs():
    metrics = {"train/loss": 2.31, "train/lr": 2.6e-4, "train/tokens_per_sec": 81203.6, "train/tokens": 55050240.0}
    progress = progress_from_run(
        run(840, metrics=metrics, totalSteps="2000", startStep="400"), now=NOW, started_at=STARTED
    )
    assert progress is not None
    assert progress.to_wire() == {
        "steps": "840/2000",
        "percentage": "42%",
        "eta": "26m",
        "step": 840,
        "totalSteps": 2000,
        "percent": 42,
        "etaSeconds": 1582,
        "loss": 2.31,
        "learningRate": 2.6e-4,
        "tokensPerSecond": 81204,
        "tokens": 55050240,
        "updatedAt": "2026-03-01T12:10:00Z",
    }


def test_the_pace_is_taken_at_the_time_the_run_was_read():
    read_at = STARTED + timedelta(seconds=100)
    progress = progress_from_run(run(50, totalSteps="100", read_at=read_at), now=NOW, started_at=STARTED)
    assert progress is not None
    assert (progress.eta_seconds, progress.eta, progress.updated_at) == (100, "1m", read_at)


@pytest.mark.parametrize(
    ("found", "started_at", "steps", "percent", "eta"),
    [
        (run(None, totalSteps="2000"), STARTED, "0/2000", 0, None),
        (run(None, totalSteps="2000", startStep="400"), STARTED, "400/2000", 20, None),
        (run(400, totalSteps="2000", startStep="400"), STARTED, "400/2000", 20, None),
        (run(840, totalSteps="2000"), None, "840/2000", 42, None),
        (run(840, totalSteps="2000"), NOW + timedelta(hours=1), "840/2000", 42, None),
        (run(840), STARTED, "840", None, None),
        (run(2000, totalSteps="2000"), STARTED, "2000/2000", 100, "0s"),
        (run(2001, totalSteps="2000"), STARTED, "2001/2000", 100, "0s"),
        (run(5, totalSteps="many"), STARTED, "5", None, None),
    ],
    ids=[
        "before the first step",
        "resumed, before the first step",
        "resumed, no new step",
        "no attempt",
        "clocks that differ",
        "no total",
        "done",
        "one step more",
        "a total that is no number",
    ],
)
def test_what_is_not_known_is_left_out(found, started_at, steps, percent, eta):
    progress = progress_from_run(found, now=NOW, started_at=started_at)
    assert progress is not None
    assert (progress.steps, progress.percent, progress.eta) == (steps, percent, eta)


def test_a_run_that_says_nothing_has_no_progress():
    assert progress_from_run(run(metrics={"train/loss": 1.0}), now=NOW, started_at=STARTED) is None


def test_numbers_that_json_has_no_word_for_are_left_out():
    metrics = {"train/loss": math.nan, "train/tokens": math.inf, "train/tokens_per_sec": -1.0}
    progress = progress_from_run(run(1, metrics=metrics), now=NOW, started_at=None)
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
    assert (checkpoint.step, checkpoint.uri) == (800, "file:///c/step-800")
    assert checkpoint_from_run(run(checkpointStep="800")) is None
    assert checkpoint_from_run(run(checkpointUri="file:///c")) is None


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
