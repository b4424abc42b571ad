"""What a run tells the world while it runs: one JSON object a line, in a file that a runner follows."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRESS_FILE = "progress.jsonl"
STOP_FILE = "stop"
"""A file of this name in the work folder asks the workers to save and stop after the step that runs."""
ENDS = frozenset({"stopped", "model", "failed"})
"""The last event of a session."""
LOCK_FILE = "workers.lock"
"""Held in the work folder by the first worker for as long as its session runs."""


class ProgressLog:
    """Appends events; a crash leaves at most one incomplete line, which the next log ends and readers pass over."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PROGRESS_FILE
        self._file = path.open("a", buffering=1)
        if self._file.tell() and _last_byte(path) != b"\n":
            self._file.write("\n")

    def write(self, event: str, **values: Any) -> None:
        """Append one event."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self._file.write(json.dumps({"event": event, "time": round(time.time(), 3), **finite}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read()


def read_progress(folder: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """The complete events from `offset` on, each with the offset behind it."""
    path = folder / PROGRESS_FILE
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                yield json.loads(line), offset
            except json.JSONDecodeError:
                continue


def end_of_progress(folder: Path) -> int:
    """The offset behind the last complete event."""
    return max((behind for _, behind in read_progress(folder)), default=0)


def told_end(folder: Path, offset: int) -> str | None:
    """The last of `ENDS` that a session has told since `offset`; None where it has told none."""
    ends = [str(event["event"]) for event, _ in read_progress(folder, offset) if event["event"] in ENDS]
    return ends[-1] if ends else None
