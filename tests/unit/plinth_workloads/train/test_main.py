"""The entry point of a training process: what signals do to it, and the last line of a run that failed."""

import json
import signal
import subprocess
import sys
import time

import pytest

from commands import ENVIRONMENT
from makers import make_pretrain_job, make_resolve_settings
from plinth_api.resolve import resolve_train_run
from plinth_workloads.errors import UserError
from plinth_workloads.train.__main__ import _report_failure
from plinth_workloads.train.progress import read_progress
from plinth_workloads.train.watchdog import tell_work_dir

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


DIED = UserError("UserCodeError", "a worker failed: ray.exceptions.ActorDiedError: The actor died unexpectedly")
STUCK = UserError("NoProgress", "nothing has moved for 10 s: rank 1 of 2 is at a:1 b")


def reported(folder, error, capsys):
    """The last line, and every failure in the progress file."""
    run = resolve_train_run(make_pretrain_job(), make_resolve_settings(work_dir=str(folder)), {})
    assert _report_failure(run, error) == 1
    events = [(event["event"], event["reason"], event["message"]) for event, _ in read_progress(folder)]
    return json.loads(capsys.readouterr().out.splitlines()[-1]), events


def test_an_error_is_one_record(tmp_path, capsys):
    record, events = reported(tmp_path, DIED, capsys)
    assert record == {"plinth": "failure", "reason": DIED.reason, "message": DIED.message}
    assert events == [("failed", DIED.reason, DIED.message)]


def test_workers_that_a_watchdog_has_ended_are_told_as_it_told_them(tmp_path, capsys):
    tell_work_dir(tmp_path, STUCK)
    record, events = reported(tmp_path, DIED, capsys)
    assert record == {"plinth": "failure", "reason": "NoProgress", "message": STUCK.message}
    assert events == [("failed", "NoProgress", STUCK.message)]
