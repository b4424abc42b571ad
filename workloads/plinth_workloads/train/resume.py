"""Where a run goes on: at its newest checkpoint whose files are as they were written, else at another job's.

A checkpoint with damaged files is told of and passed over for the one before it. One of another model or of other data
is whole, and refused: to pass it over would hide a mistake.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from plinth_api.run import TrainRun
from plinth_workloads.errors import UserError
from plinth_workloads.train.checkpoint import Checkpoint, complete_checkpoints, set_aside
from plinth_workloads.train.integrity import find_damage
from plinth_workloads.train.loop import TrainLoop
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
        # What the first process sees: a network's file system may show another one an older list.
        found = complete_checkpoints(Path(uri.removeprefix("file://"))) if uri else []
        for checkpoint in workers.gather(found)[0]:
            damage = find_damage(checkpoint.folder, workers)
            if damage is None:
                loop.resume(checkpoint)
                logger.info("going on from %s", checkpoint.folder)
                if workers.is_first:
                    _set_aside_own(damaged, Path(run.checkpoint.uri.removeprefix("file://")))
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


def _set_aside_own(damaged: Iterable[Checkpoint], folder: Path) -> None:
    """Another job's checkpoints are not ours to touch."""
    for checkpoint in damaged:
        if checkpoint.folder.is_relative_to(folder):
            set_aside(checkpoint)


def _tell(checkpoint: Checkpoint, damage: str, log: ProgressLog | None) -> None:
    logger.warning("%s is damaged: %s", checkpoint.folder, damage)
    if log is not None:
        log.write("checkpointDamaged", step=checkpoint.step, uri=checkpoint.uri, message=damage)
