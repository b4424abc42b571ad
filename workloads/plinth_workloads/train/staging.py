"""Copies of a run's tensors in the host's memory, which are written while the next steps change the tensors.

The buffers are made once and used again, so that a save costs one copy and no allocation; on a GPU they are pinned, so
that the copy runs at the speed of the bus.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class HostBuffers:
    """One buffer for each tensor, by name; a sharded tensor's holds what this process has of it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy the tensors; returns once they may change.

        Returns:
            The copies, sharded as the tensors are. They are overwritten by the next call.
        """
        copies = {}
        for name, tensor in tensors.items():
            copies[name] = self._buffer(name, tensor)
            _local(copies[name]).copy_(_local(tensor), non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return copies

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty_like(tensor.detach(), device="cpu", pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        return buffer


def _local(tensor: Tensor) -> Tensor:
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()
