"""SIGTERM, as a node that is taken away sends it: the run saves and stops after the step that it is in."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plinth_workloads.train.checkpoint import newest_checkpoint
from plinth_workloads.train.progress import read_progress
from torch_runs import ENVIRONMENT
from training import make_train_run, write_run

pytestmark = pytest.mark.integration

PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.parametrize(("launcher", "workers"), [(PYTHON, 1), (TORCHRUN, 2)], ids=["python", "torchrun"])
def test_sigterm_loses_no_step(tmp_path, launcher, workers):
    # Saves only when it is asked to: what is there at the end, the signal has brought about.
    spec = {
        "training": {"steps": 100_000},
        "checkpoint": {"everySteps": 100_000},
        "evaluation": {"everySteps": 100_000},
    }
    run = make_train_run(tmp_path, compute={"workers": workers}, **spec)
    document = write_run(run, tmp_path)
    command = [*launcher, "-m", "plinth_workloads.train", "--launcher", "none", str(document)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(told(run, "step")) > 3, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    finally:
        process.kill()
    last = told(run, "step")[-1]
    assert told(run, "checkpoint") == told(run, "stopped") == [last]
    assert newest_checkpoint(Path(run.checkpoint.uri.removeprefix("file://"))).step == last


def told(run, event):
    """The steps of all events of a name."""
    return [found["step"] for found, _ in read_progress(Path(run.work_dir)) if found["event"] == event]


def wait_for(reached, process, timeout_seconds=250):
    deadline = time.monotonic() + timeout_seconds
    while not reached():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


WAITING = """
import sys, time
from pathlib import Path
from plinth_workloads.train.__main__ import _stop_on_signals
_stop_on_signals(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_asks_to_stop_and_a_later_one_ends_the_process(tmp_path, number):
    stop_file = tmp_path / "stop"
    command = [sys.executable, "-c", WAITING, str(stop_file)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        assert not stop_file.exists()
        process.send_signal(number)
        deadline = time.monotonic() + 20
        while not stop_file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        time.sleep(1.1)
        assert process.poll() is None, "what comes at once is one request"
        process.send_signal(number)
        assert process.wait(20) == -number
    finally:
        process.kill()
