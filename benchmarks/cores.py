"""On which cores a process computes that is running already."""

import os
from pathlib import Path


def pin(process: int, cores: set[int]) -> None:
    """Give all threads of a process these cores, and so those that they start; nothing happens where it has ended."""
    try:
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)
    except OSError:
        return
