"""Runs that several processes train, resume and export together.

`torchrun tests/spread_runs.py RUN_JSON...` does one after the other; a run's folder gets `model`, its work folder the
losses.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from plinth_api.run import TrainRun
from plinth_workloads.train.checkpoint import newest_checkpoint
from plinth_workloads.train.export import export_model
from plinth_workloads.train.parallel import Workers, join_workers
from plinth_workloads.train.progress import ProgressLog
from plinth_workloads.train.session import open_session
from torch_runs import ENVIRONMENT


def train_all(documents: list[Path], *, processes: int) -> None:
    """Start the processes, and wait for them."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*launcher, __file__, *map(str, documents)], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def train_and_resume(run: TrainRun, workers: Workers, folder: Path) -> None:
    """Train to the end, forget the last checkpoint, go on from the one before, and export."""
    log = ProgressLog(Path(run.work_dir)) if workers.is_first else None
    open_session(run, workers, log, None).loop.train()
    last = newest_checkpoint(Path(run.checkpoint.uri.removeprefix("file://")))
    assert last is not None
    workers.barrier()
    if workers.is_first:
        shutil.rmtree(last.folder)
    workers.barrier()
    session = open_session(run, workers, log, None)
    assert 0 < session.loop.state.step < last.step
    session.loop.train()
    export_model(run, session.model, session.data.tokenizer, workers, folder / "model")
    workers.barrier()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    documents: list[Path] = parser.parse_args().runs
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for document in documents:
        run = TrainRun.model_validate_json(document.read_text())
        with join_workers(run) as workers:
            train_and_resume(run, workers, document.parent)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
