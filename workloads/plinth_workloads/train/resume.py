"""Where a run goes on: at its newest checkpoint whose files are as they were written, else at another job's.

What only an object store has is fetched into a folder that all processes see, and is checked there.

A checkpoint with damaged files is told of and passed over for the one before it. One of another model or of other data
is whole, and refused: to pass it over would hide a mistake.
"""

import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from plinth_api.run import TrainRun
from plinth_api.uris import in_object_store
from plinth_workloads.errors import UserError
from plinth_workloads.train.checkpoint import Checkpoint, complete_checkpoints, set_aside
from plinth_workloads.train.integrity import find_damage
from plinth_workloads.train.loop import TrainLoop
from plinth_workloads.train.object_store import ObjectStore
from plinth_workloads.train.parallel import Workers
from plinth_workloads.train.progress import ProgressLog

logger = logging.getLogger(__name__)


def resume_newest(run: TrainRun, loop: TrainLoop, workers: Workers, log: ProgressLog | None) -> None:
    """Load the newest good checkpoint of the run, else of `checkpoint.resumeFrom`; without any the loop stays new.

    Args:
        run: The run document.
        loop: What goes on.
        workers: All of them call this.
        log: Is told of damaged checkpoints; None in all processes but the first.

    Raises:
        UserError: CheckpointFailed where all that there are are damaged, or the good one is of another model or data.
    """
    damaged: dict[Checkpoint, str] = {}
    for uri in (run.checkpoint.uri, run.checkpoint.resume_from):
        for checkpoint in _candidates(run, uri, workers) if uri else []:
            _fetch(checkpoint, workers)
            damage = find_damage(checkpoint.folder, workers)
            if damage is None:
                loop.resume(checkpoint)
                logger.info("going on from %s", checkpoint.folder)
                if workers.is_first:
                    _set_aside_own(damaged, checkpoint_folder(run))
                return
            damaged[checkpoint] = damage
            if workers.is_first:
                _tell(checkpoint, damage, log)
    if damaged:
        listed = "; ".join(f"{checkpoint.folder}: {damage}" for checkpoint, damage in damaged.items())
        raise UserError(
            "CheckpointFailed",
            f"no checkpoint is whole: {listed}; bring its files back, "
            "or name an empty folder in spec.checkpoint.uri to start anew",
        )


def checkpoint_folder(run: TrainRun) -> Path:
    """Where a run writes its checkpoints; with an object store, where it does before they are sent."""
    return _folder_for(run, run.checkpoint.uri)


def object_store(run: TrainRun) -> ObjectStore | None:
    """Where a run's checkpoints are sent, None where they stay in a folder."""
    return ObjectStore(run.checkpoint.uri) if in_object_store(run.checkpoint.uri) else None


def check_stores(run: TrainRun, workers: Workers) -> None:
    """Find out whether the object stores of a run can be used, before any long work.

    Raises:
        UserError: AccessDenied or CheckpointFailed, in every process.
    """

    def check() -> None:
        store, origin = object_store(run), run.checkpoint.resume_from
        if store is not None:
            store.check()
        if origin and in_object_store(origin):
            ObjectStore(origin).complete()

    _agreed(check, workers)


def _folder_for(run: TrainRun, uri: str) -> Path:
    if not in_object_store(uri):
        return Path(uri.removeprefix("file://"))
    own = uri == run.checkpoint.uri
    return Path(run.work_dir) / ("checkpoints" if own else "cache/resumed")


def _candidates(run: TrainRun, uri: str, workers: Workers) -> list[Checkpoint]:
    """The complete checkpoints below a URI, the one with the most steps first.

    What the first process sees: a network's file system may show another one an older list.
    """
    folder = _folder_for(run, uri)
    found: list[Checkpoint] = []

    def look() -> None:
        here = complete_checkpoints(folder)
        copied = {checkpoint.folder for checkpoint in here}
        stored = ObjectStore(uri).complete() if in_object_store(uri) else []
        # Below another job's folder there may be several jobs, with checkpoints of the same steps.
        away = [Checkpoint(at.step, folder / at.uri.removeprefix(uri).strip("/"), at.uri) for at in stored]
        missing = [checkpoint for checkpoint in away if checkpoint.folder not in copied]
        found.extend(sorted([*here, *missing], key=lambda checkpoint: checkpoint.step, reverse=True))

    _agreed(look, workers)
    return workers.gather(found)[0]


def _fetch(checkpoint: Checkpoint, workers: Workers) -> None:
    """Bring a checkpoint that only a store has into its folder.

    Raises:
        UserError: AccessDenied or CheckpointFailed, in every process.
    """
    if not checkpoint.stored_at:
        return
    partial = checkpoint.folder.with_suffix(".tmp")

    def download() -> None:
        ObjectStore(checkpoint.stored_at).download(partial, workers.rank, workers.world_size)

    _agreed(lambda: shutil.rmtree(partial, ignore_errors=True), workers)
    _agreed(download, workers, in_all=True)
    _agreed(lambda: _put_in_place(partial, checkpoint.folder), workers)


def _put_in_place(partial: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _agreed(action: Callable[[], None], workers: Workers, *, in_all: bool = False) -> None:
    """Do something in the first process, or in all of them; an error of any is raised in all."""
    problem: UserError | None = None
    if in_all or workers.is_first:
        try:
            action()
        except UserError as error:
            problem = error
    for told in workers.gather(problem):
        if told is not None:
            raise told


def _set_aside_own(damaged: Iterable[Checkpoint], folder: Path) -> None:
    """Another job's checkpoints are not ours to touch, but copies of them are."""
    for checkpoint in damaged:
        if checkpoint.stored_at or checkpoint.folder.is_relative_to(folder):
            set_aside(checkpoint)


def _tell(checkpoint: Checkpoint, damage: str, log: ProgressLog | None) -> None:
    logger.warning("%s is damaged: %s", checkpoint.folder, damage)
    if log is not None:
        log.write("checkpointDamaged", step=checkpoint.step, uri=checkpoint.uri, message=damage)
