"""Workers that hang and losses that are not numbers, over real processes and with MLflow."""

import json
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import torch
from safetensors.torch import load_file

from plinth_workloads.train.progress import read_progress
from torch_runs import ENVIRONMENT
from training import make_train_run, write_run

pytestmark = pytest.mark.integration

SCRIPT = str(Path(__file__).parents[1] / "stuck_training.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def started(run, folder, *planted, weights="-", processes=2):
    launcher = TORCHRUN if processes == 2 else [sys.executable]
    command = [*launcher, SCRIPT, str(write_run(run, folder)), str(weights), *map(str, planted)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)


def events(run):
    return [event for event, _ in read_progress(Path(run.work_dir))]


@pytest.mark.parametrize("stuck", [1, 0])
def test_a_worker_that_hangs_is_named_with_its_stack_within_the_bound(tmp_path, stuck):
    run = make_train_run(tmp_path, compute={"workers": 2}, watchdog={"noProgressSeconds": 10})
    done = started(run, tmp_path, "hang", stuck, 3)
    ended = time.time()
    assert done.returncode != 0
    steps = [event for event in events(run) if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2]
    (failed,) = [event for event in events(run) if event["event"] == "failed"]
    assert 10 < failed["time"] - steps[-1]["time"] < 10 + 10
    assert ended - failed["time"] < 20
    assert failed["reason"] == "NoProgress"
    assert failed["message"].startswith(
        f"nothing has moved for 10 s (spec.watchdog.noProgressSeconds): rank {stuck} of 2 (host "
    )
    named, _, other = failed["message"].partition("; meanwhile ")
    assert "is computing the forward pass in step 3, at __main__:" in named
    assert "hangs_in_its_forward_pass" in named
    assert other.startswith(f"rank {1 - stuck} of 2")
    stacks = Path(run.work_dir) / "watchdog" / f"rank-{stuck}.stacks"
    assert str(stacks) in named
    assert "in hangs_in_its_forward_pass" in stacks.read_text()
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"plinth"')]
    assert {"plinth": "failure", "reason": "NoProgress", "message": failed["message"]} in records
    assert {record["message"] for record in records} == {failed["message"]}
    client = mlflow.MlflowClient(run.tracking.uri)
    (recorded,) = client.search_runs([client.get_experiment_by_name(run.tracking.experiment).experiment_id])
    assert recorded.info.status == "FAILED"
    assert recorded.data.tags["plinth.phase"] == "failed"
    assert recorded.data.tags["plinth.failureReason"] == "NoProgress"
    assert recorded.data.tags["plinth.failureMessage"] == failed["message"]


def test_two_workers_go_back_together_as_one_does(tmp_path):
    spec = {"checkpoint": {"everySteps": 3}, "watchdog": {"onNaN": "Rollback"}}
    weights, told = [], []
    for name, workers, shard in (("one", 1, 1), ("two", 2, 1), ("shards", 2, 2)):
        folder = tmp_path / name
        run = make_train_run(folder, compute={"workers": workers, "parallelism": {"shard": shard}}, **spec)
        done = started(run, folder, "nan", workers - 1, 5, weights=folder / "weights", processes=workers)
        assert done.returncode == 0, done.stderr
        weights.append(load_file(folder / "weights"))
        told.append([(event["step"], event["toStep"]) for event in events(run) if event["event"] == "rollback"])
    assert told == [[(5, 3)]] * 3
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5)
