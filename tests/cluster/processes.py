"""Long-running programs of a test cluster: each in a process group of its own, its log in a file.

None outlives this process: a guard holds the other end of a pipe and ends the groups when that closes. The kernel's
parent-death signal would not do: it comes when the thread that started a program ends, and setting it needs code
between fork and exec.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from cluster.build import tail

POLL_SECONDS = 0.05
TERMINATION_SECONDS = 5.0

GUARD = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    verb, group = line.split()
    (groups.add if verb == "add" else groups.discard)(int(group))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class ProcessDied(RuntimeError):
    """A program ended before it was ready; the message has the end of its log."""


class Processes:
    """Programs by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None

    def log(self, name: str) -> Path:
        """Where a program's output goes."""
        return self._folder / f"{name}.log"

    def pid(self, name: str) -> int:
        """The process id of a program that was started."""
        return self._running[name].pid

    def pids(self) -> dict[str, int]:
        """The process ids of everything that was started and not ended."""
        return {name: process.pid for name, process in self._running.items()}

    def start(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        """Start a program; its log is appended to."""
        assert name not in self._running, f"{name} runs already"
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running[name] = process
        self._tell_guard("add", process.pid)

    def wait_until(self, name: str, is_ready: Callable[[], bool], seconds: float) -> None:
        """Wait for a program; `ProcessDied` when it ends before, or `TimeoutError`."""
        deadline = time.monotonic() + seconds
        while not is_ready():
            # Any of them: one that waits for another would tell of that in many lines, the other in one.
            self.check_all()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} was not ready after {seconds:g} s. The end of its log:\n{self._tail(name)}")
            time.sleep(POLL_SECONDS)

    def check(self, name: str) -> None:
        """Raise when a program has ended by itself."""
        code = self._running[name].poll()
        if code is not None:
            raise ProcessDied(f"{name} ended with {code}. The end of its log:\n{self._tail(name)}")

    def check_all(self) -> None:
        """Raise when any program has ended by itself, the first started first."""
        for name in list(self._running):
            self.check(name)

    def is_running(self, name: str) -> bool:
        """Whether it was started and has not ended."""
        return name in self._running and self._running[name].poll() is None

    def stop(self, name: str, *, gently: bool = True) -> None:
        """End a program and what it started; gently means that it has time to finish."""
        process = self._running.pop(name, None)
        if process is None:
            return
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if gently and process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(TERMINATION_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._tell_guard("remove", process.pid)

    def stop_all(self) -> None:
        """End every program, the last started first, and the guard."""
        for name in reversed(list(self._running)):
            self.stop(name, gently=False)
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait()
        self._guard = None

    def _tail(self, name: str) -> str:
        return tail(self.log(name))

    def _tell_guard(self, verb: str, group: int) -> None:
        if self._guard is None:
            # In a session of its own: a Ctrl-C in the terminal must not end it before its charges.
            self._guard = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", GUARD], stdin=subprocess.PIPE, start_new_session=True
            )
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{verb} {group}\n".encode())
        self._guard.stdin.flush()
