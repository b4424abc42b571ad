"""Ends an attempt that no longer moves, and says which worker it hangs on and where.

Enters: the marks of the loop (`pulse.py`) and what the other workers say (`heartbeats.py`). Leaves: nothing while the
training moves; else the stacks of all threads in the work folder, one failure told by one worker, and the end of the
process, which no exception could bring about: the thread that trains does not listen.

Each worker has a thread that looks. Where that cannot run, because C code keeps the interpreter's lock, a timer of
faulthandler, which needs no lock, writes the stacks and ends the process a little later than the thread would have.
"""

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import IO

from plinth_api.run import RunWatchdog, TrainRun
from plinth_workloads.errors import Reason, UserError, failure_record
from plinth_workloads.train.heartbeats import Heartbeat, HeartbeatFolder, stuck_failure
from plinth_workloads.train.progress import ProgressLog
from plinth_workloads.train.pulse import Pulse

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: the next attempt may do better."""

_LONGEST_PERIOD = 5.0
"""Between two heartbeats; a limit below 50 s has ten of them."""
_TIMER_MARGIN = 5.0
"""How much later than the thread faulthandler's timer acts."""
_POLL_SECONDS = 0.2
_COLLECTIVES = "torch.distributed.distributed_c10d"
"""The module of all_reduce and its like, which wait for the other workers."""
_TELL_SECONDS = 30.0
"""For telling MLflow, which may be what hangs."""


class Watchdog:
    """The thread that watches the thread which has made it."""

    def __init__(
        self,
        limits: RunWatchdog,
        work_dir: Path,
        *,
        rank: int,
        world_size: int,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        """Nothing runs yet.

        Args:
            limits: Without any, there is nothing to watch and no thread.
            work_dir: A folder that all workers see.
            rank: This worker's.
            world_size: How many workers there are.
            end_process: Ends this process with a code, whatever its other threads do.
        """
        self.pulse = Pulse()
        self.tell: Callable[[UserError], object] | None = None
        self._limits, self._work_dir = limits, work_dir
        self._world_size, self._end_process = world_size, end_process
        self._folder = HeartbeatFolder(work_dir)
        self._started_at = time.monotonic()
        shortest = min((limit for limit in (limits.no_progress_seconds, limits.startup_seconds) if limit), default=None)
        self._period = min(_LONGEST_PERIOD, (shortest or 0) / 10)
        self._is_on = shortest is not None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._beat = Heartbeat(
            rank, socket.gethostname(), os.getpid(), threading.get_ident(), str(self._folder.stack(rank))
        )
        self._dump: IO[str] | None = None

    def start(self) -> None:
        """Watch from now on."""
        if self._is_on:
            self._folder.path.mkdir(parents=True, exist_ok=True)
            self._dump = self._folder.stack(self._beat.rank).open("w")
            self._look()
            self._thread.start()

    def stop(self) -> None:
        """Watch no more; does not come back where the attempt is being ended.

        An error in this worker may be a consequence of another one's end, which is then told in its place.
        """
        if self._dump is None:
            return
        self._stop.set()
        self._thread.join()
        dumped = self._folder.dumped()
        if dumped and self._folder.told() is None:
            self._finish(self._folder.read(), unable=dumped - {self._beat.rank})
        self._disarm()
        self._dump.close()
        self._dump = None

    def _watch(self) -> None:
        try:
            while not self._stop.is_set():
                if not self._look() and (beats := self._gather()):
                    said = {beat.rank for beat in self._folder.said() if beat.stuck_at}
                    self._finish(beats, unable={beat.rank for beat in beats[1:]} - said)
                    return
                self._stop.wait(self._period)
        finally:
            # A timer that nobody puts off any more would end a process that moves.
            self._disarm()

    def _look(self) -> bool:
        """Say where this worker is, and put off the timer that would end it; whether it moves."""
        remaining = self._remaining()
        self._say()
        if remaining is None:
            self._disarm()
        elif remaining > 0:
            # The thread sees it up to a period late, and looks twice.
            self._arm(remaining + 2 * self._period + _TIMER_MARGIN)
        return remaining is None or remaining > 0

    def _limit(self) -> tuple[Reason, float | None, float]:
        """The reason of which the attempt would end now, the limit in seconds, and since when it counts."""
        if not self.pulse.has_started:
            return "StartupTimeout", self._limits.startup_seconds, self._started_at
        limit = None if self.pulse.rests else self._limits.no_progress_seconds
        return "NoProgress", limit, self.pulse.moved_at

    def _remaining(self) -> float | None:
        """Seconds until this worker has not moved for too long; None where nothing limits it now."""
        now = time.monotonic()
        self.pulse.look(now)
        _, limit, since = self._limit()
        return None if limit is None else since + limit - now

    def _say(self, stuck_at: str = "", *, waits: bool = False) -> None:
        pulse = self.pulse
        self._beat = replace(
            self._beat,
            beat=self._beat.beat + 1,
            marks=pulse.marks,
            step=pulse.step,
            doing=pulse.doing,
            has_started=pulse.has_started,
            idle_seconds=time.monotonic() - pulse.moved_at,
            stuck_at=stuck_at,
            waits=waits,
        )
        # A full disk stops a run when it saves, not because nobody can read where it is.
        with suppress(OSError):
            self._folder.write(self._beat)

    def _gather(self) -> list[Heartbeat]:
        """What all workers say once none of them moves; nothing where this one has moved again, or has failed.

        A worker that only waits for a slow one is not stuck as long as that one moves.
        """
        # A machine that was paused may wake this thread first: the other one has a moment to move.
        if self._stop.wait(self._period) or self._look():
            return []
        frame = sys._current_frames().get(self._beat.thread)
        stuck_at, waits = innermost(frame)
        self._say(stuck_at, waits=waits)
        self._write_stacks()
        seen: dict[int, tuple[int, float]] = {}
        while True:
            self._arm(_TELL_SECONDS + _TIMER_MARGIN)
            now = time.monotonic()
            others = [beat for beat in self._folder.read() if beat.rank != self._beat.rank]
            beats = [self._beat, *others]
            if all(self._is_over(beat, seen, now) for beat in beats):
                return beats
            remaining = self._remaining()
            if remaining is None or remaining > 0 or self._stop.wait(self._period / 2):
                self._empty_stacks()
                return []

    def _is_over(self, beat: Heartbeat, seen: dict[int, tuple[int, float]], now: float) -> bool:
        """Whether a worker has said that it is stuck, or has said nothing for as long as it may not move."""
        if beat.stuck_at:
            return True
        number, since = seen.setdefault(beat.rank, (beat.beat, now))
        if number != beat.beat:
            seen[beat.rank] = (beat.beat, now)
            return False
        _, limit, _ = self._limit()
        # Its own timer is to leave a stack before.
        patience = 4 * self._period + 2 * _TIMER_MARGIN
        return now - since > max(patience, (limit or 0) - beat.idle_seconds)

    def _write_stacks(self) -> None:
        assert self._dump is not None
        with suppress(OSError):
            faulthandler.dump_traceback(self._dump, all_threads=True)
            os.write(2, self._folder.stack(self._beat.rank).read_bytes())

    def _empty_stacks(self) -> None:
        assert self._dump is not None
        self._say()
        self._dump.seek(0)
        self._dump.truncate()

    def _finish(self, beats: Sequence[Heartbeat], *, unable: Collection[int]) -> None:
        """End this process; the first worker that can run Python tells why before, and the others wait for that."""
        self._arm(_TELL_SECONDS + 2 * _TIMER_MARGIN)
        reason, limit, _ = self._limit()
        try:
            if any(beat.rank < self._beat.rank for beat in beats if beat.rank not in unable):
                self._wait_until_told()
            else:
                self._tell(stuck_failure(reason, limit or 0, beats, self._world_size))
        finally:
            self._end_process(EXIT_CODE)

    def _wait_until_told(self) -> None:
        """Live on until MLflow has been told: a launcher may end all workers when it sees the first one end."""
        deadline = time.monotonic() + _TELL_SECONDS
        while time.monotonic() < deadline and not self._folder.is_told_everywhere():
            time.sleep(_POLL_SECONDS)

    def _tell(self, failure: UserError) -> None:
        # A disk that is full keeps neither MLflow nor the log from being told.
        with suppress(OSError):
            tell_work_dir(self._work_dir, failure)
        if self.tell is not None:
            telling = threading.Thread(target=self.tell, args=(failure,), daemon=True)
            telling.start()
            telling.join(_TELL_SECONDS)
        # Not by sys.stdout: its lock may be held by the thread that is stuck.
        os.write(1, (failure_record(failure) + "\n").encode())
        self._folder.mark_told_everywhere()

    def _arm(self, seconds: float) -> None:
        assert self._dump is not None
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._dump)

    def _disarm(self) -> None:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def watched(run: TrainRun, rank: int, world_size: int) -> Iterator[Watchdog]:
    """Watch the calling thread while the block runs."""
    watchdog = Watchdog(run.watchdog, Path(run.work_dir), rank=rank, world_size=world_size)
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()


def tell_work_dir(work_dir: Path, failure: UserError) -> None:
    """Leave a failure where a runner, and whoever started the workers, find it."""
    log = ProgressLog(work_dir)
    log.write("failed", reason=failure.reason, message=failure.message)
    log.close()
    HeartbeatFolder(work_dir).tell(failure)


def told_failure(run: TrainRun) -> UserError | None:
    """What a watchdog has ended the workers for; None where none did.

    For whoever has started them: where no worker was left that could tell, it is told here.
    """
    folder = HeartbeatFolder(Path(run.work_dir))
    told = folder.told()
    if told is None and folder.dumped():
        beats = folder.read()
        limits = run.watchdog
        started = any(beat.has_started for beat in beats)
        reason: Reason = "NoProgress" if started else "StartupTimeout"
        seconds = limits.no_progress_seconds if started else limits.startup_seconds
        told = stuck_failure(reason, seconds or 0, beats, run.workers.num_workers)
        tell_work_dir(Path(run.work_dir), told)
    return told


def innermost(frame: FrameType | None) -> tuple[str, bool]:
    """Where a frame is, "module:line function", and whether that is inside a collective."""
    if frame is None:
        return "", False
    place = f"{_module(frame)}:{frame.f_lineno} {frame.f_code.co_name}"
    outer: FrameType | None = frame
    while outer is not None and _module(outer) != _COLLECTIVES:
        outer = outer.f_back
    return place, outer is not None


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "?"))
