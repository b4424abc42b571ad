"""What signals do to the entry point of a training process."""

import signal
import subprocess
import sys
import time

import pytest

from commands import ENVIRONMENT

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
