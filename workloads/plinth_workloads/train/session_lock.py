"""One session at a time in a work folder: the first worker holds a lock there for as long as its session runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from plinth_workloads.train.progress import LOCK_FILE

_LEFTOVER_SECONDS = 60.0


@contextmanager
def only_session(folder: Path, *, is_first: bool) -> Iterator[None]:
    """Wait for the workers of an attempt whose runner was killed: they may still be writing a checkpoint.

    Args:
        folder: The run's work folder.
        is_first: Whether this is the worker that holds the lock; the others pass.
    """
    if not is_first:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK_FILE, timeout=_LEFTOVER_SECONDS):
        yield
