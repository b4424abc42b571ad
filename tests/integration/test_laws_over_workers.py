"""The laws of training over several processes, and over processes that die."""

import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from plinth_workloads.train.checkpoint import newest_checkpoint
from torch_runs import ENVIRONMENT, command, train
from training import make_train_run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def alone_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("alone")


@pytest.fixture(scope="module")
def alone(alone_folder):
    return train(make_train_run(alone_folder), alone_folder)


ACCUMULATING = {"training": {"microBatchSize": 2}, "checkpoint": {"everySteps": 4}}


def test_two_copies_that_accumulate_train_as_one_process_does(tmp_path, alone):
    run = make_train_run(tmp_path, compute={"workers": 2}, **ACCUMULATING)
    assert_as_alone(run, train(run, tmp_path, processes=2), alone)


def test_two_shards_that_accumulate_train_as_one_process_does_also_resumed(tmp_path, alone):
    run = make_train_run(tmp_path, compute={"workers": 2, "parallelism": {"shard": 2}}, **ACCUMULATING)
    assert_as_alone(run, train(run, tmp_path, processes=2), alone)
    checkpoints = Path(run.checkpoint.uri.removeprefix("file://"))
    last = newest_checkpoint(checkpoints)
    assert last.step == 10
    shutil.rmtree(last.folder)
    assert newest_checkpoint(checkpoints).step == 8
    assert_as_alone(run, train(run, tmp_path, processes=2), alone)


def assert_as_alone(run, trained, alone):
    weights, losses = trained
    assert losses == pytest.approx(alone[1], abs=1e-5)
    assert set(weights) == set(alone[0])
    for name, value in alone[0].items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5)


def test_killed_while_it_saves_it_goes_on_as_if_nothing_had_happened(tmp_path, alone):
    run = make_train_run(tmp_path, checkpoint={"everySteps": 1})
    checkpoints = Path(run.checkpoint.uri.removeprefix("file://"))
    for after_step in (2, 6):
        process = subprocess.Popen(command(run, tmp_path), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        assert kill_while_saving(process, checkpoints, after_step)
        assert newest_checkpoint(checkpoints).step >= after_step
    weights, losses = train(run, tmp_path)
    assert all(torch.equal(weights[name], value) for name, value in alone[0].items())
    assert losses == alone[1]


def kill_while_saving(process, checkpoints, after_step):
    """Kill the process at the sight of an incomplete checkpoint; whether there was one when it died."""
    while process.poll() is None:
        if any(int(path.stem[5:]) > after_step for path in checkpoints.glob("step-*.tmp")):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        # A checkpoint is incomplete for longer than this; without it the test takes a core from what it waits for.
        time.sleep(0.001)
    return False


def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_the_checkpoint(alone, alone_folder):
    # Goes on where `alone` ended, to save the start of a process.
    longer = make_train_run(alone_folder, training={"steps": 14}, checkpoint={"everySteps": 3})
    checkpoints = Path(longer.checkpoint.uri.removeprefix("file://"))
    good = newest_checkpoint(checkpoints)
    assert good.step == 10
    done = subprocess.run(
        command(longer, alone_folder),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        # A file may not grow past 100 KB: the kernel refuses the shard as it would on a full disk.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 1
    assert "the checkpoint of step 12 cannot be saved" in done.stderr
    assert "a file may not grow" in done.stderr
    assert f"the last good one is {good.folder}" in done.stderr
    assert newest_checkpoint(checkpoints) == good
    assert not list(checkpoints.glob("*.tmp"))
