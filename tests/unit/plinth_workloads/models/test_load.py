"""How a model gets to where it computes: in the type that is asked for, never more than it on the host."""

import pytest
import torch

from plinth_workloads.errors import UserError
from plinth_workloads.models.load import load_for_inference, load_model
from plinth_workloads.models.model_load import LoadStep, ModelLoad, following
from unit.plinth_workloads.serving.tiny_model import make_model, make_tokenizer


def saved(folder, dtype=torch.bfloat16):
    make_model().to(dtype).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def loaded(folder, device):
    return load_model(folder, "m", tracking_uri="", cache_dir=folder, device=device)


def test_weights_are_fp32_on_a_cpu(tmp_path):
    assert loaded(saved(tmp_path), "cpu").dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_keep_their_type_elsewhere_and_go_there_directly(tmp_path, dtype):
    # A device that has no memory of its own: whatever went over the host would be there.
    model = loaded(saved(tmp_path, dtype), "meta")
    assert {(weight.dtype, weight.device.type) for weight in model.parameters()} == {(dtype, "meta")}


def test_the_step_and_its_size_are_told(tmp_path):
    told = []

    class Listening(ModelLoad):
        def tell(self, step):
            told.append(step)

    with following(Listening()):
        loaded(saved(tmp_path), "cpu")
    size = (tmp_path / "model.safetensors").stat().st_size
    assert told == [LoadStep("loading", total_bytes=size)]


def test_a_model_whose_file_was_cut_off_is_refused_with_its_name(tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"has a damaged safetensors file: model.safetensors has [\d,]+ bytes"):
        load_for_inference(f"file://{tmp_path}", tracking_uri="", cache_dir=tmp_path)
