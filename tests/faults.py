"""What was done to jobs on the node and what it cost: steps done twice and the time without one, told as a table."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from small_job import FIRST_STEP_SECONDS, SmallJob
from teams import Document

FORCED = ("--grace-period=0", "--force")
"""Flags of a deletion that gives nobody time."""


@dataclass
class Faults:
    """Figures by fault."""

    records: list[Document] = field(default_factory=list)

    def add(self, fault: str, **figures: object) -> Document:
        """The figures of one fault."""
        record: Document = {"fault": fault, **figures}
        self.records.append(record)
        return record

    @contextmanager
    def ends_attempt(self, fault: str, job: SmallJob) -> Iterator[Document]:
        """Do inside what ends the attempt that runs; waits until the next one trains, and fills in what that took."""
        before = len(job.attempts())
        record: Document = {}
        at = time.time()
        yield record
        status = job.wait_restarted(at)
        ended, following = status["attempts"][before - 1], status["attempts"][before]
        record |= self.add(
            fault,
            reason=ended["outcome"],
            stepsLost=steps_done_twice(job.events(), at),
            stepsLostByStatus=ended.get("lostSteps"),
            endKnownSeconds=round(datetime.fromisoformat(ended["finishedAt"]).timestamp() - at, 1),
            nextStepSeconds=round(first_step_of_next(job.events(), at) - at, 1),
            attempt=following["number"],
        )

    @contextmanager
    def disturbs(self, fault: str, job: SmallJob) -> Iterator[Document]:
        """Do inside what should end no attempt, until it is over; fills in the longest time without a step."""
        before = job.attempts()
        record: Document = {}
        at = time.time()
        yield record
        over = time.time()
        job.wait_steps(5, FIRST_STEP_SECONDS, after=over)
        record |= self.add(
            fault,
            reason="",
            stepsLost=steps_done_twice(job.events(), at),
            stepsLostByStatus=0,
            nextStepSeconds=round(longest_pause(job.events(), at), 1),
            overSeconds=round(over - at, 1),
        )
        assert [attempt["number"] for attempt in job.attempts()] == [attempt["number"] for attempt in before]

    def write(self, path: Path) -> None:
        """Keep them as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.records, indent=1) + "\n")

    def table(self) -> str:
        """For people."""
        columns = ("fault", "reason", "stepsLost", "stepsLostByStatus", "endKnownSeconds", "nextStepSeconds")
        heads = ("fault", "reason", "lost", "told", "end known, s", "next step, s")
        rows = [heads, *(tuple(_text(record.get(column)) for column in columns) for record in self.records)]
        widths = [max(len(row[index]) for row in rows) for index in range(len(heads))]
        return "\n".join(_line(row, widths) for row in rows)


def steps_done_twice(events: list[Document], at: float) -> int:
    """The steps after a moment that had been done before, over all attempts since."""
    twice, last = 0, 0
    for event in events:
        if event["event"] == "step":
            twice += event["step"] <= last and event["time"] > at
            last = max(last, event["step"])
    return twice


def first_step_of_next(events: list[Document], at: float) -> float:
    """When the first attempt that began after a moment did its first step."""
    begun = next(index for index, event in enumerate(events) if event["event"] == "started" and event["time"] > at)
    return float(next(event["time"] for event in events[begun:] if event["event"] == "step"))


def longest_pause(events: list[Document], at: float) -> float:
    """The longest time between two steps, from the last one before a moment on."""
    times = [event["time"] for event in events if event["event"] == "step"]
    last = max(moment for moment in times if moment <= at)
    following = [last, *(moment for moment in times if moment > at)]
    return float(max(after - before for before, after in pairwise(following)))


def _text(figure: object) -> str:
    return "" if figure is None else str(figure)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    words = [
        cell.ljust(width) if index < 2 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(words).rstrip()
