"""A process that no longer moves is ended from inside, with a reason. Real processes and threads, no training."""

import faulthandler
import json
import subprocess
import sys
import time

import pytest

from makers import make_pretrain_job, make_resolve_settings
from plinth_api.resolve import resolve_train_run
from plinth_api.run import RunWatchdog
from plinth_workloads.errors import UserError
from plinth_workloads.train.heartbeats import HeartbeatFolder
from plinth_workloads.train.progress import read_progress
from plinth_workloads.train.watchdog import EXIT_CODE, Watchdog, told_failure
from torch_runs import ENVIRONMENT

pytestmark = pytest.mark.integration

STUCK = """
import ctypes, sys, time
from pathlib import Path
from plinth_api.run import RunWatchdog
from plinth_workloads.train import watchdog as module

folder, limits, starts, locked = Path(sys.argv[1]), eval(sys.argv[2]), sys.argv[3] == "True", sys.argv[4] == "True"
module._TIMER_MARGIN = 0.5

def tell(failure):
    (folder / "mlflow").write_text(failure.reason)
    time.sleep(61)

def hangs_here():
    if locked:
        time.sleep(1)
        ctypes.PyDLL(None).sleep(60)
    time.sleep(60)

module._TELL_SECONDS = 1
watchdog = module.Watchdog(RunWatchdog(**limits), folder, rank=0, world_size=1)
watchdog.tell = tell
watchdog.start()
watchdog.pulse.mark("computing the forward pass", 3)
if starts:
    watchdog.pulse.finish_step()
hangs_here()
"""


def line_of(text):
    return STUCK.splitlines().index(text) + 1


def stuck(folder, limits, *, starts=True, locked=False):
    """A process that hangs, and how many seconds it lived."""
    command = [sys.executable, "-c", STUCK, str(folder), repr(limits), str(starts), str(locked)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=50)


@pytest.mark.parametrize(
    ("limits", "starts", "reason", "words"),
    [
        pytest.param(
            {"no_progress_seconds": 1},
            True,
            "NoProgress",
            "nothing has moved for 1 s (spec.watchdog.noProgress",
            id="hang",
        ),
        pytest.param(
            {"startup_seconds": 1},
            False,
            "StartupTimeout",
            "the first step was not done 1 s after the start",
            id="start",
        ),
    ],
)
def test_a_process_that_hangs_is_ended_and_says_where(tmp_path, limits, starts, reason, words):
    done = stuck(tmp_path, limits, starts=starts)
    assert done.returncode == EXIT_CODE, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert (record["plinth"], record["reason"]) == ("failure", reason)
    assert record["message"].startswith(words)
    assert "rank 0 of 1" in record["message"]
    assert f"__main__:{line_of('    time.sleep(60)')} hangs_here;" in record["message"]
    ((event, _),) = read_progress(tmp_path)
    assert (event["event"], event["reason"], event["message"]) == ("failed", reason, record["message"])
    # It was told, though MLflow never answered.
    assert (tmp_path / "mlflow").read_text() == reason
    stacks = HeartbeatFolder(tmp_path).stack(0).read_text()
    assert "in hangs_here" in stacks
    assert "in _write_stacks" in stacks
    assert stacks in done.stderr


def test_a_process_that_keeps_the_interpreters_lock_is_ended_and_told_by_whoever_started_it(tmp_path):
    limits = {"no_progress_seconds": 2}
    done = stuck(tmp_path, limits, locked=True)
    assert done.returncode == 1
    job = make_pretrain_job(watchdog={"noProgressSeconds": 10})
    run = resolve_train_run(job, make_resolve_settings(work_dir=str(tmp_path)), {})
    told = told_failure(run)
    assert told.reason == "NoProgress"
    assert "rank 0 of 1" in told.message
    assert f"at <string>:{line_of('        ctypes.PyDLL(None).sleep(60)')} hangs_here;" in told.message
    ((event, _),) = read_progress(tmp_path)
    assert event["message"] == told.message
    assert told_failure(run).message == told.message
    assert len(list(read_progress(tmp_path))) == 1


class Ended:
    """Remembers the code with which the process would have ended."""

    def __init__(self):
        self.codes = []

    def __call__(self, code):
        self.codes.append(code)


def watchdog_in(folder, *, rank=0, world_size=1, **limits):
    ended = Ended()
    watchdog = Watchdog(RunWatchdog(**limits), folder, rank=rank, world_size=world_size, end_process=ended)
    return watchdog, ended


def keeps_moving(watchdog, *, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        watchdog.pulse.mark("computing the forward pass")
        time.sleep(0.02)


def test_what_moves_is_left_alone(tmp_path):
    watchdog, ended = watchdog_in(tmp_path, no_progress_seconds=1)
    watchdog.start()
    watchdog.pulse.finish_step()
    keeps_moving(watchdog, seconds=1.5)
    watchdog.stop()
    assert ended.codes == []
    (beat,) = HeartbeatFolder(tmp_path).read()
    assert beat.beat > 1
    assert beat.stuck_at == ""
    assert HeartbeatFolder(tmp_path).told() is None


def test_what_is_uploaded_after_the_last_step_is_left_alone(tmp_path):
    watchdog, ended = watchdog_in(tmp_path, no_progress_seconds=1)
    watchdog.start()
    watchdog.pulse.finish_step()
    watchdog.pulse.rest()
    time.sleep(1.5)
    watchdog.stop()
    assert ended.codes == []


def test_without_a_limit_nothing_runs(tmp_path):
    watchdog, _ = watchdog_in(tmp_path)
    watchdog.start()
    watchdog.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_waits_as_long_as_another_one_moves(tmp_path):
    waits, ended = watchdog_in(tmp_path, world_size=2, no_progress_seconds=1)
    moves, other_ended = watchdog_in(tmp_path, rank=1, world_size=2, no_progress_seconds=1)
    for watchdog in (waits, moves):
        watchdog.start()
        watchdog.pulse.finish_step()
    keeps_moving(moves, seconds=2.5)
    stuck_at = [beat.stuck_at != "" for beat in HeartbeatFolder(tmp_path).read()]
    waits.pulse.finish_step()
    time.sleep(0.5)
    after = [beat.stuck_at != "" for beat in HeartbeatFolder(tmp_path).read()]
    waits.stop()
    moves.stop()
    assert (stuck_at, after) == ([True, False], [False, False])
    assert ended.codes == other_ended.codes == []


def test_an_error_that_follows_anothers_end_is_not_told_in_its_place(tmp_path, monkeypatch):
    timer = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: timer.append("set"))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: timer.append("cancelled"))
    watchdog, ended = watchdog_in(tmp_path, world_size=2, no_progress_seconds=1000)
    told = []
    watchdog.tell = told.append
    watchdog.start()
    folder = HeartbeatFolder(tmp_path)
    while not folder.read():
        time.sleep(0.01)
    watchdog.pulse.finish_step()
    (first,) = folder.read()
    folder.write(type(first)(1, "host-1", 7, 255, str(folder.stack(1)), marks=0, step=3, has_started=True))
    folder.stack(1).write_text('Timeout!\nThread 0x00000000000000ff (most\n  File "/app/c.py", line 9 in spin\n')
    watchdog.stop()
    assert ended.codes == [EXIT_CODE]
    # Nor is the timer left that would end this process.
    assert "set" in timer
    assert timer[-1] == "cancelled"
    (failure,) = told
    assert isinstance(failure, UserError)
    assert "rank 1 of 2 (host host-1, process 7) is preparing in step 3, at c:9 spin" in failure.message
