"""How much memory there is and is free: the GPU's, the container's, or the machine's.

It stands alone because training and serving both ask, and neither knows the other.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

_LIMIT_FILES = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of cgroup v2 and v1, as a container sees its own."""


def container_limit_bytes(root: Path = Path("/")) -> int | None:
    """What this container may use, None where there is no limit.

    Args:
        root: Below which the limits' files are.
    """
    for name in _LIMIT_FILES:
        with contextlib.suppress(OSError, ValueError):
            # "max" is no number: there is no limit.
            return int((root / name).read_text())
    return None


def free_bytes(device: "torch.device", root: Path = Path("/")) -> int:
    """What this process could still take on `device`."""
    if device.type == "cuda":
        import torch

        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    available: int = psutil.virtual_memory().available
    limit = container_limit_bytes(root)
    if limit is None:
        return available
    held: int = psutil.Process().memory_info().rss
    return max(0, min(available, limit - held))
