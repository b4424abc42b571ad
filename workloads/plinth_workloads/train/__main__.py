"""Entry point of a training workload: `python -m plinth_workloads.train run.json [--launcher ray|none]`.

Exits with 0 when the run is finished or was asked to stop, 1 when it failed; the last line printed is then one JSON
object with the reason.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plinth_api.run import TrainRun
from plinth_workloads.errors import UserError, as_user_error, failure_record
from plinth_workloads.train.heartbeats import HeartbeatFolder
from plinth_workloads.train.progress import STOP_FILE, ProgressLog
from plinth_workloads.train.watchdog import told_failure

_TOGETHER_SECONDS = 1.0
"""Signals that come within it are one request: what ends a whole group reaches a worker itself and through torchrun."""


def main() -> int:
    """Run the document named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m plinth_workloads.train", description=__doc__)
    parser.add_argument("run", type=Path, help="the run document, run.json")
    parser.add_argument(
        "--launcher",
        choices=("ray", "none"),
        default="none" if "RANK" in os.environ else "ray",
        help="ray starts the workers; none makes this process one of them (python, torchrun)",
    )
    parser.add_argument("--exit-with-parent", action="store_true", help="end when standard input is closed")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run = TrainRun.model_validate_json(arguments.run.read_text())
    if arguments.exit_with_parent:
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    stop_file = Path(run.work_dir) / STOP_FILE
    stop_file.parent.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") == "0":
        stop_file.unlink(missing_ok=True)
        HeartbeatFolder(Path(run.work_dir)).clear()
    try:
        _train(run, arguments.launcher, stop_file)
    except Exception as error:
        return _report_failure(run, error)
    return 0


def _train(run: TrainRun, launcher: str, stop_file: Path) -> None:
    if launcher == "ray":
        from plinth_workloads.train.worker import join_ray, train_with_ray

        join_ray(run)
        # After joining: Ray's own handler of SIGTERM would end this process at once.
        asked = _stop_on_signals(stop_file)
        # In a thread, where Ray Train leaves SIGINT alone.
        with ThreadPoolExecutor(max_workers=1) as pool:
            pool.submit(train_with_ray, run, asked).result()
    else:
        from plinth_workloads.train.session import run_training

        _stop_on_signals(stop_file)
        run_training(run)


def _stop_on_signals(stop_file: Path) -> threading.Event:
    """Let SIGTERM and SIGINT ask the workers to save and stop; a second one ends this process at once.

    Returns:
        Set once one has come.
    """
    asked_at: list[float] = []
    asked = threading.Event()

    def ask_or_end(number: int, _frame: object) -> None:
        if not asked_at:
            asked_at.append(time.monotonic())
            asked.set()
            stop_file.touch()
        elif time.monotonic() - asked_at[0] > _TOGETHER_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_or_end)
    return asked


def _report_failure(run: TrainRun, error: Exception) -> int:
    """Tell the reason: to the progress file, and as the last line of the output.

    Where a watchdog has ended the workers, what it said is the reason, and the error a consequence.
    """
    told = told_failure(run)
    if told is None:
        if not isinstance(error, UserError):
            traceback.print_exc()
        told = as_user_error(error)
        log = ProgressLog(Path(run.work_dir))
        log.write("failed", reason=told.reason, message=told.message)
        log.close()
    sys.stdout.write(failure_record(told) + "\n")
    sys.stdout.flush()
    return 1


def _exit_with_parent() -> None:
    """A parent that dies, however it dies, closes our standard input."""
    # Unbuffered: a thread inside a buffered read aborts the interpreter's shutdown.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
