"""Memory that costs nothing before it is used: zeros of a size that may never be reached.

torch writes its zeros, so a tensor of a gigabyte takes half a second and a gigabyte at once. The system's own pages are
zeros that are made when they are first touched.
"""

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor


def lazy_zeros(shape: Sequence[int], *, like: Tensor) -> Tensor:
    """Zeros of a shape, with the type and on the device of another tensor; on a CPU each page is made when it is used.

    The memory is given back with the last tensor that shares it.
    """
    num_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or not num_bytes:
        return like.new_zeros(shape)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=like.dtype).view(shape)
