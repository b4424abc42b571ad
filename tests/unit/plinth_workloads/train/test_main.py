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
        for _ in range(2):
            process.send_signal(number)
            time.sleep(0.2)
        assert stop_file.exists()
        assert process.poll() is None, "what comes at once is one request"
        time.sleep(1)
        process.send_signal(number)
        assert process.wait(10) == -number
    finally:
        process.kill()
