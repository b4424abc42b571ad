"""Weights that cannot be loaded are refused by the name of their file, before anything is read."""

import json

import pytest
import torch
from safetensors.torch import save_file

from plinth_workloads.errors import UserError
from plinth_workloads.models.weight_files import check_weights

URI = "models:/m/1"


def saved(folder, name="model.safetensors"):
    save_file({"weight": torch.zeros(100)}, folder / name, metadata={"format": "pt"})
    return folder / name


def refusal(folder):
    with pytest.raises(UserError) as refused:
        check_weights(folder, URI)
    assert refused.value.reason == "ModelLoadFailed"
    return refused.value.message


def test_whole_weights_are_as_large_as_their_files(tmp_path):
    sizes = [saved(tmp_path, name).stat().st_size for name in ("a.safetensors", "b.safetensors")]
    assert check_weights(tmp_path, URI) == sum(sizes)


def test_a_folder_without_weights_is_refused(tmp_path):
    assert refusal(tmp_path) == f"{URI} has no *.safetensors; other formats of weights are not loaded"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_with_the_reason_and_a_way(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02")
    told = refusal(tmp_path)
    assert told.startswith(f"{URI} has no *.safetensors, and {name} is not loaded: a pickle may run any program")
    assert "model.save_pretrained" in told


def test_a_file_that_was_cut_off_is_named(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert f"model.safetensors has {len(whole) - 100:,} bytes, and its header says {len(whole):,}" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100, (4).to_bytes(8, "little") + b"null"])
def test_what_is_no_safetensors_file_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert f"model.safetensors ({len(content):,} bytes) has no header" in refusal(tmp_path)


def index(folder, *names):
    weights = {f"weight{number}": name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def test_a_shard_that_is_missing_is_named(tmp_path):
    saved(tmp_path, "model-1.safetensors")
    index(tmp_path, "model-1.safetensors", "model-2.safetensors")
    assert "model-2.safetensors is missing, one of 2 files of its weights" in refusal(tmp_path)


def test_what_the_index_does_not_name_does_not_matter(tmp_path):
    size = saved(tmp_path, "model-1.safetensors").stat().st_size
    (tmp_path / "other.safetensors").write_bytes(b"of something else")
    index(tmp_path, "model-1.safetensors")
    assert check_weights(tmp_path, URI) == size


def test_an_index_that_cannot_be_read_is_named(tmp_path):
    saved(tmp_path, "model-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert "model.safetensors.index.json is damaged" in refusal(tmp_path)
