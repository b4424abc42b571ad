"""Entry point: `python -m plinth_workloads.train.drain run.json` asks the running session to save and stop, and waits.

For whoever is about to end the processes of a run: a node that is drained, a job that is suspended. Exits with 0 once
no session runs, 1 where one still does after the time given. The next attempt removes the request when it starts.
Knows neither torch nor Ray: it must answer within the seconds that a node is given.
"""

import argparse
import fcntl
import sys
import time
from pathlib import Path

from plinth_api.run import TrainRun
from plinth_workloads.train.progress import ENDS, LOCK_FILE, STOP_FILE, end_of_progress, read_progress

_POLL_SECONDS = 0.25
_CLOSING_SECONDS = 15.0
"""A session that has told its end still sends what is queued for MLflow; it may take so long, an outage longer."""


def main(argv: list[str] | None = None) -> int:
    """Ask the run named on the command line to stop, and wait."""
    parser = argparse.ArgumentParser(prog="python -m plinth_workloads.train.drain", description="Save and stop a run.")
    parser.add_argument("run", type=Path, help="the run document, run.json")
    parser.add_argument("--timeout-seconds", type=float, default=120.0, help="how long to wait (default %(default)s)")
    arguments = parser.parse_args(argv)
    folder = Path(TrainRun.model_validate_json(arguments.run.read_text()).work_dir)
    return 0 if drain(folder, arguments.timeout_seconds) else 1


def drain(folder: Path, timeout_seconds: float, *, closing_seconds: float = _CLOSING_SECONDS) -> bool:
    """Ask the session of a work folder to stop; whether it has ended.

    Args:
        folder: The run's work folder.
        timeout_seconds: How long to wait for the end.
        closing_seconds: How long a session that has told its end may go on to close what it has open.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_seconds
    told_at: float | None = None
    offset = end_of_progress(folder)
    (folder / STOP_FILE).touch()
    while session_runs(folder):
        for event, behind in read_progress(folder, offset):
            offset = behind
            told_at = time.monotonic() if event["event"] in ENDS else None
        now = time.monotonic()
        if told_at is not None and now >= told_at + closing_seconds:
            return True
        if now >= deadline:
            return told_at is not None
        time.sleep(_POLL_SECONDS)
    return True


def session_runs(folder: Path) -> bool:
    """Whether a first worker holds the lock of the work folder; the kernel frees it when that process dies."""
    try:
        with (folder / LOCK_FILE).open("rb") as lock:
            # Shared, so that those who ask do not take each other for a session.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
