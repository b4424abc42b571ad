"""A session is asked to stop, and waited for."""

import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from filelock import FileLock

from commands import ENVIRONMENT
from plinth_workloads.train import drain as draining
from plinth_workloads.train.drain import drain, session_runs
from plinth_workloads.train.progress import LOCK_FILE, STOP_FILE, ProgressLog
from training import make_train_run, write_run


@contextmanager
def session(folder, *events, ends):
    """Holds the lock as a session does; asked to stop, it tells these events, and ends where it may."""
    held, let_go = threading.Event(), threading.Event()

    def run():
        with FileLock(folder / LOCK_FILE):
            held.set()
            while not (folder / STOP_FILE).exists() and not let_go.is_set():
                time.sleep(0.01)
            log = ProgressLog(folder)
            for event in events:
                log.write(event)
            log.close()
            if not ends:
                let_go.wait(30)

    thread = threading.Thread(target=run)
    thread.start()
    assert held.wait(10)
    try:
        yield
    finally:
        let_go.set()
        thread.join()


def test_it_waits_until_the_session_has_saved_and_ended(tmp_path):
    with session(tmp_path, "checkpoint", "stopped", ends=True):
        assert session_runs(tmp_path)
        assert drain(tmp_path, 20)
        assert not session_runs(tmp_path)
    assert (tmp_path / STOP_FILE).exists()


def test_without_a_session_it_asks_and_does_not_wait(tmp_path):
    began = time.monotonic()
    assert drain(tmp_path / "work", 20)
    assert time.monotonic() - began < 5
    assert (tmp_path / "work" / STOP_FILE).exists()


def test_a_lock_that_a_dead_session_left_is_no_session(tmp_path):
    (tmp_path / LOCK_FILE).touch()
    assert drain(tmp_path, 20)


def test_a_session_that_goes_on_is_told_by_the_result(tmp_path):
    with session(tmp_path, "checkpoint", ends=False):
        assert not drain(tmp_path, 0.5)


def test_an_end_of_an_earlier_session_does_not_count(tmp_path):
    ProgressLog(tmp_path).write("stopped")
    with session(tmp_path, ends=False):
        assert not drain(tmp_path, 0.5, closing_seconds=0)


@pytest.mark.parametrize("event", ["stopped", "model", "failed"])
def test_a_session_that_has_told_its_end_may_take_a_while_to_close(tmp_path, event):
    with session(tmp_path, event, ends=False):
        assert drain(tmp_path, 20, closing_seconds=0.3)
        assert session_runs(tmp_path)


def test_the_command_says_by_its_code_whether_the_session_has_ended(tmp_path):
    document = str(write_run(make_train_run(tmp_path), tmp_path / "work"))
    assert draining.main([document]) == 0
    with session(tmp_path / "work", ends=False):
        assert draining.main([document, "--timeout-seconds", "0.3"]) == 1


def test_it_starts_without_what_is_slow_to_import():
    code = (
        "import sys, plinth_workloads.train.drain; print({'torch', 'ray', 'mlflow', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stdout.strip() == "set()"
