"""How much memory this worker may have, and how much it has held: the GPU's, the container's, or the machine's.

It stands alone because it is all that the estimate and the probe ask of the machine.
"""

import contextlib
import os
from pathlib import Path

import psutil
import torch

from plinth_workloads.machine_memory import container_limit_bytes
from plinth_workloads.train.memory import Room
from plinth_workloads.train.metrics import memory_bytes

_MEMORY_FIELD = "spec.compute.perWorker.memory"


def room_for_training(device: torch.device, *, model_bytes: int) -> Room:
    """What the state and the passes of a training may take.

    Args:
        device: Where it trains.
        model_bytes: Of the model, which is in the host's memory already and is counted by whoever asks.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Room(free + torch.cuda.memory_reserved(device), "the GPU's memory that is free", None)
    host = host_room()
    held = max(0, psutil.Process().memory_info().rss - model_bytes)
    return Room(host.size - held, f"{host.what}, less what the program itself holds", host.raised_by)


def host_room(root: Path = Path("/")) -> Room:
    """This worker's part of the container's limit, or of the machine where there is none.

    Args:
        root: Below which the limits' files are.
    """
    workers = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    shared = f" among {workers} workers" if workers > 1 else ""
    machine = psutil.virtual_memory().total
    limit = container_limit_bytes(root)
    if limit is not None and limit < machine:
        return Room(limit // workers, f"the container's memory{shared}", _MEMORY_FIELD)
    return Room(machine // workers, f"the machine's memory{shared}", None)


class MemoryMeter:
    """How much memory this process holds, and the most that it has held since `reset`."""

    def __init__(self, device: torch.device, process: Path = Path("/proc/self")) -> None:
        self._device, self._process = device, process

    def reset(self) -> int:
        """Forget the peak; returns what is held now."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            return torch.cuda.memory_reserved(self._device)
        # Where this cannot be, the peak of earlier times stands, and the probe takes more than needed for needed.
        with contextlib.suppress(OSError):
            (self._process / "clear_refs").write_text("5")
        held: int = psutil.Process().memory_info().rss
        return held

    def peak(self) -> int:
        """The most that was held, in bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_reserved(self._device)
        with contextlib.suppress(OSError):
            for line in (self._process / "status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return memory_bytes(self._device)
