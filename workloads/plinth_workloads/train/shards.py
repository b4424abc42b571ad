"""One process's part of a checkpoint, written as safetensors and hashed on the way, so that no file is read again.

torch's own writer lets safetensors make a copy of the whole shard, and Python's lock is held meanwhile: the thread that
trains would stand still for seconds. Here one tensor after the other is hashed and written from where it lies, which
both release the lock.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the format: https://github.com/huggingface/safetensors#format."""
_ALIGNMENT = 8
"""Bytes; tensors begin at a multiple of their elements' size."""


class ShardWriter(HuggingFaceStorageWriter):
    """A writer for DCP: a file for each process, which `HuggingFaceStorageReader` reads.

    Attributes:
        checksums: SHA-256 in hexadecimal of this process's file, by its name; empty where it has nothing to write.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.folder = folder
        self.checksums: dict[str, str] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the tensors of the plan."""
        if plan.items:
            name = f"shard-{plan.storage_data['shard_index']:05d}.safetensors"
            tensors = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
            offsets = {item.index.fqn: list(item.tensor_data.chunk.offsets) for item in plan.items if item.tensor_data}
            # Where each part of a sharded tensor begins, as HuggingFaceStorageReader asks for it.
            sharding = {name: {"saved_offsets": begins} for name, begins in offsets.items()}
            metadata = {"DCP_SHARDING_INFO": json.dumps(sharding), "format": "pt"}
            self.checksums[name] = write_tensors(self.folder / name, tensors, metadata)  # type: ignore[arg-type]
        done: Future[list[WriteResult]] = Future()
        done.set_result([])
        return done


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write a safetensors file to the disk itself; returns its SHA-256 in hexadecimal."""
    # The larger elements first, so that each tensor is aligned.
    ordered = dict(sorted(tensors.items(), key=lambda named: (-named[1].element_size(), named[0])))
    parts: list[bytes | memoryview] = [_header(ordered, metadata), *map(_bytes_of, ordered.values())]
    checksum = hashlib.sha256()
    with path.open("wb") as file:
        for part in parts:
            checksum.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return checksum.hexdigest()


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = text + b" " * (-len(text) % _ALIGNMENT)
    return len(padded).to_bytes(8, "little") + padded


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
