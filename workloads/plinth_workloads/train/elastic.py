"""A run on as many workers as there is room for: from a cluster that grows and shrinks to sessions of fixed sizes.

Enters: an elastic run, and the cluster as something that has room and can train. Leaves: the run, finished or stopped.
Where the cluster grows, the workers are asked to save and stop as before the end of a pod, and go on as more of them:
no step is trained twice. Where a worker is lost, the others go on from the newest checkpoint. Knows neither torch nor
Ray. Why not Ray Train's own resizing: docs/adr/0023-elastic-jobs-are-sessions-of-fixed-sizes.md.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from plinth_api.elastic import possible_numbers, with_workers
from plinth_api.run import TrainRun
from plinth_workloads.errors import UserError
from plinth_workloads.train.heartbeats import HeartbeatFolder
from plinth_workloads.train.progress import STOP_FILE, ProgressLog, end_of_progress, read_progress, told_end

_MOST_LOSSES = 3
"""So often in a row may a worker be lost before a step is saved: then it is the run that ends its workers."""

logger = logging.getLogger(__name__)


class WorkersLost(UserError):
    """A worker's process is gone, and nothing says that the run itself was the cause."""


class Cluster(Protocol):
    """Where workers run."""

    def room(self) -> int:
        """How many workers there is room for now, those that train included."""
        ...

    def ask_for(self, more: int) -> None:
        """Let there be room for so many workers more than train, where the cluster can grow; the last call counts."""
        ...

    def train(self, run: TrainRun) -> None:
        """Train on `run.workers.num_workers` workers, until the run is finished or was asked to stop.

        Raises:
            WorkersLost: The others can go on.
            UserError: The run failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things may take, in seconds.

    Attributes:
        look: Between two looks at the cluster; room must be there twice in a row before it is used.
        settle: What a worker that is lost or was told to go has for being seen as gone, before the others go on.
        between: What Ray has for ending what drove a session before it starts the next: the head has no room for both.
        wait: How long the cluster may have room for fewer workers than the fewest.
    """

    look: float = 15.0
    settle: float = 30.0
    between: float = 5.0
    wait: float = 1800.0


@dataclass(slots=True)
class _Session:
    """One start of the workers."""

    count: int
    offset: int
    ended: threading.Event = field(default_factory=threading.Event)
    grows: bool = False


def train_elastically(run: TrainRun, cluster: Cluster, asked: threading.Event, pace: Pace | None = None) -> None:
    """Train on as many workers as there is room for, until the run is finished or `asked` is set and it has stopped.

    Raises:
        UserError: The run failed, workers are lost again and again, or there never is room for the fewest.
    """
    limit = run.watchdog.startup_seconds
    pace = pace or (Pace(wait=limit) if limit else Pace())
    folder, losses, saved = Path(run.work_dir), 0, -1
    while True:
        count = _wait_for_room(run, cluster, asked, pace)
        if count is None:
            return
        HeartbeatFolder(folder).clear()
        session = _Session(count, end_of_progress(folder))
        _tell(folder, "workers", count=count)
        try:
            with _watch_room(run, cluster, session, pace):
                cluster.train(with_workers(run, count))
        except WorkersLost as lost:
            newest = _last_saved(folder)
            losses, saved = (1 if newest > saved else losses + 1), newest
            if losses > _MOST_LOSSES:
                raise
            logger.warning("%s; the others go on from step %d", lost.message, max(0, newest))
            _tell(folder, "workersLost", count=count, message=lost.message)
        if asked.is_set() or told_end(folder, session.offset) == "model":
            return
        asked.wait(pace.between)
        if not session.grows:
            _settle(cluster, count, asked, pace)
        (folder / STOP_FILE).unlink(missing_ok=True)


def _wait_for_room(run: TrainRun, cluster: Cluster, asked: threading.Event, pace: Pace) -> int | None:
    """The most workers that there is room for; None where somebody asks to stop before there is."""
    deadline, fewest = time.monotonic() + pace.wait, possible_numbers(run)[0]
    while not asked.is_set():
        room = cluster.room()
        count = _largest(run, room)
        if count is not None:
            return count
        if time.monotonic() > deadline:
            text = f"for {pace.wait:.0f} s (spec.watchdog.startupSeconds) the cluster had room for fewer than {fewest} "
            raise UserError(
                "StartupTimeout", f"{text}workers (spec.compute.elastic.minWorkers): {room}; lower it, or add nodes"
            )
        logger.info("room for %d workers, at least %d are needed", room, fewest)
        asked.wait(pace.look)
    return None


def _settle(cluster: Cluster, count: int, asked: threading.Event, pace: Pace) -> None:
    """Wait until the cluster has less room than for the workers that there were, for so long as that may take."""
    deadline = time.monotonic() + pace.settle
    while cluster.room() >= count and time.monotonic() < deadline and not asked.wait(min(1.0, pace.settle / 10)):
        pass


def _largest(run: TrainRun, room: int) -> int | None:
    return max((count for count in possible_numbers(run) if count <= room), default=None)


@contextmanager
def _watch_room(run: TrainRun, cluster: Cluster, session: _Session, pace: Pace) -> Iterator[None]:
    """Ask the workers to stop once there is room for more of them, while they train."""
    watcher = threading.Thread(target=_look_on, args=(run, cluster, session, pace), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        session.ended.set()
        watcher.join()
        cluster.ask_for(0)


def _look_on(run: TrainRun, cluster: Cluster, session: _Session, pace: Pace) -> None:
    folder, seen, asked = Path(run.work_dir), 0, False
    while not session.ended.wait(pace.look):
        if not asked and _has_event(folder, session.offset, {"run"}):
            # Not before its workers have their places, which what is asked for would take.
            cluster.ask_for(possible_numbers(run)[-1] - session.count)
            asked = True
        count = _largest(run, cluster.room())
        seen = seen + 1 if count is not None and count > session.count else 0
        # Workers that have not trained a step yet would have started for nothing.
        if seen >= 2 and _has_event(folder, session.offset, {"step"}):
            logger.info("room for %d workers: those %d save and go on as more", count, session.count)
            session.grows = True
            (folder / STOP_FILE).touch()
            return


def _has_event(folder: Path, offset: int, names: set[str]) -> bool:
    return any(event["event"] in names for event, _ in read_progress(folder, offset))


def _last_saved(folder: Path) -> int:
    """The newest step that a checkpoint has, -1 before the first."""
    return max((event["step"] for event, _ in read_progress(folder) if event["event"] == "checkpoint"), default=-1)


def _tell(folder: Path, event: str, **values: object) -> None:
    log = ProgressLog(folder)
    log.write(event, **values)
    log.close()
