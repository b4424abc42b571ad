"""What the model that a run starts from says of its data, kept beside the tokens: one number for each answer.

It is on disk because what reads it, the rows of training, of evaluation and of a gate, is made in several places, and
because the next attempt of the run, which starts from a checkpoint, finds it again.

Shapes: N documents; column 0 is the chosen answer, column 1 the rejected one.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plinth_api.run import TrainRun
from plinth_workloads.data.token_store import TokenStore

FloatArray = npt.NDArray[np.float32]


def reference_path(run: TrainRun, store: TokenStore) -> Path:
    """The file for the documents of a store, whether it is there or not."""
    identity = f"{run.model.uri} {run.training.precision} {store.fingerprint}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Path(run.work_dir) / "cache" / f"reference-{name}.npy"


def write_reference(path: Path, log_probs_N2: FloatArray) -> None:
    """Write the file; it exists only once everything is in it, and workers that share a folder write the same."""
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    with partial.open("wb") as file:
        np.save(file, log_probs_N2)
    partial.rename(path)


def read_reference(path: Path) -> FloatArray | None:
    """Log probabilities [N, 2], mapped into memory; None where they are not computed yet."""
    if not path.exists():
        return None
    log_probs_N2: FloatArray = np.load(path, mmap_mode="r")
    return log_probs_N2
