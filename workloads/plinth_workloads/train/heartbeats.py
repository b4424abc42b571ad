"""What every worker says of itself while it trains, in small files that all workers and whoever started them can read.

Files in the work folder, not a store of torch.distributed: that folder is shared by all workers already, a file can be
read when no collective works any more, takes no lock that a stuck thread may hold, and is still there when the worker
that wrote it is gone. They are written in place: on NFS what is opened is fresh, what is renamed may be seen late.
"""

import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from plinth_workloads.errors import Reason, UserError

_TRIES, _BETWEEN_TRIES = 10, 0.02
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>.+)')


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One worker, as it last said.

    Attributes:
        thread: Identity of the thread that trains, as faulthandler writes it in hexadecimal.
        beat: How often it has said something; one that stands still is of a worker that cannot run Python.
        marks: How far it is; see `Pulse`.
        idle_seconds: How long it had not moved.
        stuck_at: Its innermost frame, once it has not moved for too long: "module:line function".
        waits: Whether that is inside a collective, where a worker waits for the others.
        stack: The file with the stacks of all its threads.
    """

    rank: int
    host: str
    pid: int
    thread: int
    stack: str
    beat: int = 0
    marks: int = -1
    step: int = 0
    doing: str = "preparing"
    has_started: bool = False
    idle_seconds: float = 0.0
    stuck_at: str = ""
    waits: bool = False

    def place(self, world_size: int) -> str:
        """Which worker it is and what it does, for a sentence."""
        who = f"rank {self.rank} of {world_size} (host {self.host}, process {self.pid})"
        at = f"at {self.stuck_at}" if self.stuck_at else "and its process does not answer"
        return f"{who} is {self.doing} in step {self.step}, {at}"


class HeartbeatFolder:
    """The heartbeats of one attempt, and what it ended with."""

    def __init__(self, work_dir: Path) -> None:
        self.path = work_dir / "watchdog"
        self._failure = self.path / "failure.json"

    def clear(self) -> None:
        """Forget what an earlier attempt has said."""
        shutil.rmtree(self.path, ignore_errors=True)

    def stack(self, rank: int) -> Path:
        """Where a worker's stacks go."""
        return self.path / f"rank-{rank}.stacks"

    def write(self, beat: Heartbeat) -> None:
        """Say something."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / f"rank-{beat.rank}.json").write_text(json.dumps(asdict(beat)))

    def read(self) -> list[Heartbeat]:
        """Every worker that has said something, by rank; one that cannot run Python with the stack that it left."""
        return [self._with_dump(beat) for beat in self.said()]

    def dumped(self) -> set[int]:
        """The workers that could not run Python and were ended, their stacks written by faulthandler."""
        return {beat.rank for beat in self.said() if not beat.stuck_at and self._with_dump(beat).stuck_at}

    def said(self) -> list[Heartbeat]:
        """What every worker has said last, by rank."""
        beats = [beat for path in self.path.glob("rank-*.json") if (beat := _read(path)) is not None]
        return sorted(beats, key=lambda beat: beat.rank)

    def tell(self, failure: UserError) -> None:
        """Leave what the attempt ended with, for whoever started it."""
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self._failure.with_suffix(".tmp")
        partial.write_text(json.dumps({"reason": failure.reason, "message": failure.message}))
        partial.rename(self._failure)

    def mark_told_everywhere(self) -> None:
        """Let the other workers end: whoever tells has finished."""
        (self.path / "told").touch()

    def is_told_everywhere(self) -> bool:
        """Whether whoever tells has finished."""
        return (self.path / "told").exists()

    def told(self) -> UserError | None:
        """What the attempt ended with, where a watchdog has ended it."""
        if not self._failure.exists():
            return None
        return UserError(**json.loads(self._failure.read_text()))

    def _with_dump(self, beat: Heartbeat) -> Heartbeat:
        if beat.stuck_at:
            return beat
        at, waits = innermost_frame(self.stack(beat.rank), beat.thread)
        return replace(beat, stuck_at=at, waits=waits)


def _read(path: Path) -> Heartbeat | None:
    for _ in range(_TRIES):
        try:
            return Heartbeat(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            time.sleep(_BETWEEN_TRIES)  # being written at this moment
    return None


def innermost_frame(stacks: Path, thread: int) -> tuple[str, bool]:
    """Where a thread is in a file that faulthandler wrote: "module:line function", and whether in a collective.

    Empty where the file or the thread is not there.
    """
    if not stacks.exists():
        return "", False
    _, found, behind = stacks.read_text(errors="replace").partition(f"0x{thread:016x} ")
    frames = [_FRAME.search(line) for line in behind.splitlines()[1:]] if found else []
    if not frames or frames[0] is None:
        return "", False
    first = frames[0]
    own = frames[: next((index for index, frame in enumerate(frames) if frame is None), len(frames))]
    waits = any("/distributed_c10d.py" in frame["file"] for frame in own if frame is not None)
    return f"{Path(first['file']).stem}:{first['line']} {first['function']}", waits


def stuck_failure(reason: Reason, seconds: float, beats: Sequence[Heartbeat], world_size: int) -> UserError:
    """The sentence that names the worker which the others wait for.

    Every worker goes through the same marks, so that it is the one with the fewest; among equals one that says nothing
    any more, then one that is not waiting in a collective.

    Args:
        reason: NoProgress or StartupTimeout.
        seconds: The limit of the watchdog.
        beats: Of all workers that have said something.
        world_size: How many workers there are.
    """
    if reason == "StartupTimeout":
        what = f"the first step was not done {seconds:g} s after the start (spec.watchdog.startupSeconds)"
    else:
        what = f"nothing has moved for {seconds:g} s (spec.watchdog.noProgressSeconds)"
    missing = sorted(set(range(world_size)) - {beat.rank for beat in beats})
    if missing:
        return UserError(reason, f"{what}: rank {missing[0]} of {world_size} has not said anything yet")
    first, *others = sorted(beats, key=_how_far)
    others = [beat for beat in others if beat.rank != first.rank]
    where = f"{first.place(world_size)}; the stacks of its threads are in {first.stack}"
    if others and _how_far(others[0])[:-1] == _how_far(first)[:-1]:
        return UserError(reason, f"{what}, and no worker is behind the others: {where}")
    waiting = f"; meanwhile {others[0].place(world_size)}" if others else ""
    return UserError(reason, f"{what}: {where}{waiting}")


def _how_far(beat: Heartbeat) -> tuple[int, bool, bool, int]:
    return beat.marks, bool(beat.stuck_at), beat.waits, beat.rank
