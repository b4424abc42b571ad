import hashlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from plinth_workloads.train.shards import write_tensors

TENSORS = {
    "count": torch.tensor(7, dtype=torch.int64),
    "flags": torch.tensor([True, False, True]),
    "half": torch.arange(5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(1.5),
    "turned": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
}


def test_safetensors_reads_what_is_written(tmp_path):
    path = tmp_path / "shard.safetensors"
    checksum = write_tensors(path, TENSORS, {"format": "pt"})
    read = load_file(path)
    assert set(read) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert hashlib.sha256(path.read_bytes()).hexdigest() == checksum


def test_a_type_that_the_format_does_not_have_is_not_written_as_another(tmp_path):
    with pytest.raises(KeyError, match="complex64"):
        write_tensors(tmp_path / "shard.safetensors", {"wave": torch.zeros(2, dtype=torch.complex64)}, {})
