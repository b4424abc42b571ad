import subprocess

import pytest
import torch

from plinth_workloads.train.integrity import CHECKSUMS, find_damage, write_checksums
from plinth_workloads.train.shards import write_tensors
from training import ALONE

SHARD = "shard-00001.safetensors"


@pytest.fixture
def folder(tmp_path):
    """The files of a checkpoint."""
    checksum = write_tensors(tmp_path / SHARD, {"weight": torch.arange(100.0)}, {})
    (tmp_path / "state.json").write_text('{"step": 1}')
    write_checksums(tmp_path, {SHARD: checksum}, {"state.json": b'{"step": 1}'})
    return tmp_path


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_what_is_as_it_was_written_is_whole(folder):
    assert find_damage(folder, ALONE) is None
    done = subprocess.run(["sha256sum", "--check", CHECKSUMS], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == f"{SHARD}: OK\nstate.json: OK\n"


@pytest.mark.parametrize("name", [SHARD, "state.json"])
def test_a_changed_bit_is_found(folder, name):
    flip_a_bit(folder / name)
    assert find_damage(folder, ALONE) == f"{name} ({(folder / name).stat().st_size:,} bytes) is not as it was written"


def test_a_file_that_was_cut_off_is_found(folder):
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[:-20])
    assert find_damage(folder, ALONE) == f"{SHARD} ({len(content) - 20} bytes) is not as it was written"


def test_a_missing_file_is_found(folder):
    (folder / SHARD).unlink()
    assert find_damage(folder, ALONE) == f"{SHARD} is missing"


def test_a_file_of_another_checkpoint_is_found(folder):
    (folder / "shard-00002.safetensors").write_bytes((folder / SHARD).read_bytes())
    assert find_damage(folder, ALONE) == "shard-00002.safetensors was not written with it"


@pytest.mark.parametrize("content", [b"not a list of checksums", b"\xff\xfe", b"00  ../elsewhere\n"])
def test_a_list_that_cannot_be_read_is_damage(folder, content):
    (folder / CHECKSUMS).write_bytes(content)
    assert find_damage(folder, ALONE).startswith("checksums.sha256 cannot be read: ")
    (folder / CHECKSUMS).unlink()
    assert find_damage(folder, ALONE).startswith("checksums.sha256 cannot be read: ")
