"""Where the training is, as it says itself: what the loop marks and the watchdog reads.

Marks are plain writes to attributes, so that a step neither waits for them nor for whoever reads them. Every worker
makes the same marks in the same order, as it goes through the same program: of two, the one with fewer is behind.
"""

import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Pulse:
    """What one worker does at the moment, and when it last moved.

    Attributes:
        marks: How many marks there were; comparable between workers.
        step: The step that is worked on, or that an evaluation or a checkpoint is of.
        doing: What the worker has entered last, in words.
        has_started: Whether a step was finished.
        rests: Whether nothing that is left to do can be seen to move.
        moved_at: Of the last mark or sign of life, by the clock of `time.monotonic`.
    """

    def __init__(self) -> None:
        self.marks = 0
        self.step = 0
        self.doing = "preparing"
        self.has_started = False
        self.rests = False
        self.moved_at = time.monotonic()
        self._signs: Callable[[], Hashable] | None = None
        self._seen: Hashable = None

    def mark(self, doing: str, step: int | None = None) -> None:
        """Something is over and something else begins."""
        self.doing = doing
        self.step = self.step if step is None else step
        self.marks += 1
        self.moved_at = time.monotonic()

    def finish_step(self) -> None:
        """The step is done."""
        self.mark("between steps")
        self.has_started = True

    def rest(self) -> None:
        """Training is over: a model that is exported and uploaded cannot be seen to move."""
        self.mark("concluding")
        self.rests = True

    def each(self, doing: str, items: Iterable[T]) -> Iterator[T]:
        """The items, with a mark for each."""
        for item in items:
            self.mark(doing)
            yield item

    @contextmanager
    def during(self, doing: str, signs: Callable[[], Hashable]) -> Iterator[None]:
        """One long call that cannot mark: it moves as long as `signs`, which another thread calls, change."""
        self.mark(doing)
        self._seen, self._signs = None, signs
        try:
            yield
        finally:
            self._signs = None
            self.mark("between steps")

    def look(self, now: float) -> None:
        """Take a change of the signs of life for a move; for whoever watches."""
        signs = self._signs
        if signs is None:
            return
        seen = signs()
        if seen != self._seen:
            self._seen, self.moved_at = seen, now


def bytes_below(folder: Path) -> tuple[int, int]:
    """How many files there are below a folder and their size, as a sign that somebody writes there."""
    sizes = []
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # renamed or removed meanwhile: the next look sees it
                sizes.append(os.stat(f"{parent}/{name}").st_size)
    return len(sizes), sum(sizes)
