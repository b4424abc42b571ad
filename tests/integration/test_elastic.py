"""An elastic run over real Ray nodes: it grows without a lost step, and goes on without a worker that dies."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from plinth_api.common import Elastic
from plinth_workloads.train.progress import read_progress
from torch_runs import ENVIRONMENT, losses_of, train
from training import make_train_run, write_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).parents[1] / "elastic_training.py"
EVERY = 20
TRAINING = {"globalBatchSize": 12, "sequenceLength": 128, "learningRate": 1e-4, "schedule": {"name": "constant"}}


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """What the sessions told, one list for each, and the run."""
    folder = tmp_path_factory.mktemp("elastic")
    training, checkpoint = {**TRAINING, "steps": 100_000}, {"everySteps": EVERY}
    run = make_train_run(folder, compute={"workers": 2}, training=training, checkpoint=checkpoint)
    elastic = Elastic(min_workers=1, max_workers=4)
    run = run.model_copy(update={"workers": run.workers.model_copy(update={"elastic": elastic})})
    command = [sys.executable, str(SCRIPT), str(write_run(run, folder))]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)
    events = [event for event, _ in read_progress(Path(run.work_dir))]
    assert done.returncode == 0, f"{done.stderr[-4000:]}\n{events[-5:]}"
    starts = [index for index, event in enumerate(events) if event["event"] == "workers"]
    return run, [events[start:end] for start, end in itertools.pairwise([*starts, len(events)])]


def of(session, name):
    return [event for event in session if event["event"] == name]


def test_it_grows_into_a_node_that_joins_without_a_lost_step(story):
    _, (two, three, _) = story
    assert (of(two, "started")[0]["workers"], of(three, "started")[0]["workers"]) == (2, 3)
    (stopped,), (started,) = of(two, "stopped"), of(three, "started")
    assert started["step"] == stopped["step"] == of(two, "step")[-1]["step"]


def test_it_goes_on_from_the_newest_checkpoint_when_a_node_dies(story):
    _, (_, three, two) = story
    (lost,), (started,) = of(three, "workersLost"), of(two, "started")
    assert "ray.exceptions." in lost["message"]
    assert started["workers"] == 2
    assert started["step"] == of(three, "checkpoint")[-1]["step"]
    assert of(three, "step")[-1]["step"] - started["step"] <= EVERY
    assert of(two, "stopped")


def test_it_learns_what_one_process_does(story, tmp_path):
    run, _ = story
    losses = losses_of(run)
    _, expected = train(make_train_run(tmp_path, training={**TRAINING, "steps": max(losses)}), tmp_path)
    assert losses == pytest.approx(expected, rel=1e-3)
