"""Training in processes of its own, without Ray: plain python, or torchrun for several workers."""

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from plinth_workloads.train.progress import read_progress
from training import write_run

TRAINING = str(Path(__file__).parent / "training.py")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",
}


def command(run, folder, *, processes=1):
    """The command line of a run."""
    script = [TRAINING, str(write_run(run, folder)), str(folder / "weights.safetensors")]
    if processes == 1:
        return [sys.executable, *script]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *script]


def train(run, folder, *, processes=1):
    """Train to the end; the weights and the loss of every step."""
    done = subprocess.run(
        command(run, folder, processes=processes), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return load_file(folder / "weights.safetensors"), losses_of(run)


def losses_of(run):
    """The loss of every step, as its progress file has it."""
    events = [event for event, _ in read_progress(Path(run.work_dir)) if event["event"] == "step"]
    return {event["step"]: event["loss"] for event in events}
