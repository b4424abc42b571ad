"""Runs of several workers one after the other, each worker forked from one process that has imported everything.

`python tests/forks.py PLAN_JSON` does the phases of a plan; a phase that goes on at a step has the checkpoints after it
removed first. A phase may have a fault, which its last worker has while it writes the checkpoint of `FAULT_STEP`.
"""

import errno
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from plinth_api.run import TrainRun
from plinth_workloads.errors import UserError
from plinth_workloads.train import checkpoint
from plinth_workloads.train.checkpoint import complete_checkpoints
from plinth_workloads.train.parallel import join_workers
from plinth_workloads.train.progress import ProgressLog
from plinth_workloads.train.session import Session, open_session
from plinth_workloads.train.shards import ShardWriter
from torch_runs import ENVIRONMENT

FAULT_STEP = 6
_IMPORTED_ONCE = ("datasets", "pandas", "torch._dynamo", "transformers.models.llama.modeling_llama")
"""What every worker would import for itself as it opens its session."""


@dataclass(frozen=True)
class Phase:
    """One start of a run's workers.

    Attributes:
        folder: Has `run.json`; gets `resumed.safetensors`, `trained.safetensors` and `outcome-<rank>`.
    """

    folder: str
    processes: int
    from_step: int = 0
    fault: Literal["none", "killed", "full disk"] = "none"


def run_phases(plan: list[Phase], folder: Path) -> None:
    """Do all of them in a process of its own."""
    path = folder / "plan.json"
    path.write_text(json.dumps([asdict(phase) for phase in plan]))
    done = subprocess.run([sys.executable, __file__, str(path)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


class _KilledWriter(ShardWriter):
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        if self.folder.name == f"step-{FAULT_STEP:08d}.tmp":
            (self.folder / "shard-00002.safetensors").write_bytes(b"torn")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write_data(plan, planner)


class _FullDiskWriter(ShardWriter):
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        if self.folder.name == f"step-{FAULT_STEP:08d}.tmp":
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write_data(plan, planner)


def _tensors(session: Session) -> dict[str, torch.Tensor]:
    """Weights and optimizer state, whole; every worker calls this."""
    parts = checkpoint.state_tensors(session.model, session.loop._optimizers)
    whole = {name: part.full_tensor() if isinstance(part, DTensor) else part for name, part in parts.items()}
    return {name: value.detach().clone().contiguous() for name, value in whole.items()}


def _work(phase: Phase, rank: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(phase.processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    folder = Path(phase.folder)
    if rank == phase.processes - 1 and phase.fault != "none":
        writer = _KilledWriter if phase.fault == "killed" else _FullDiskWriter
        mock.patch.object(checkpoint, "ShardWriter", writer).start()
    outcome = "finished"
    try:
        run = TrainRun.model_validate_json((folder / "run.json").read_text())
        with join_workers(run) as workers:
            log = ProgressLog(Path(run.work_dir)) if workers.is_first else None
            session = open_session(run, workers, log, None)
            resumed = _tensors(session)
            session.loop.train()
            trained = _tensors(session)
            if workers.is_first:
                save_file(resumed, folder / "resumed.safetensors")
                save_file(trained, folder / "trained.safetensors")
    except UserError as error:
        outcome = f"{error.reason}: {error.message}"
    except RuntimeError as error:
        outcome = f"RuntimeError: {error}"
    (folder / f"outcome-{rank}").write_text(outcome)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def main() -> None:
    torch.set_num_threads(1)
    for module in _IMPORTED_ONCE:
        importlib.import_module(module)
    context = multiprocessing.get_context("fork")
    for phase in (Phase(**told) for told in json.loads(Path(sys.argv[1]).read_text())):
        run = TrainRun.model_validate_json((Path(phase.folder) / "run.json").read_text())
        for saved in complete_checkpoints(Path(run.checkpoint.uri.removeprefix("file://"))):
            if saved.step > phase.from_step:
                shutil.rmtree(saved.folder)
        port = _free_port()
        workers = [context.Process(target=_work, args=(phase, rank, port)) for rank in range(phase.processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
