"""How a model gets to where it computes: in the type that is asked for, never more than it on the host."""

import json

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


def read_with_changed_configuration(folder, changes, four_bits):
    """The failure that is told."""
    path = saved(folder, torch.float32) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError) as error:
        load_model(folder, "m", tracking_uri="", cache_dir=folder, four_bits=four_bits)
    return f"{error.value.reason}: {error.value.message}"


@pytest.mark.parametrize("four_bits", [None, torch.float32], ids=["whole", "in four bits"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"hidden_size": "many"}, "Validation error for field 'hidden_size': TypeError: ", id="a type"),
        pytest.param({"num_attention_heads": 0}, "integer modulo by zero; check its JSON files", id="no heads"),
        pytest.param({"pad_token_id": 999}, "Padding_idx must be within num_embeddings; check", id="no such token"),
        pytest.param({"hidden_act": "none"}, "'none'; check its JSON files", id="no such activation"),
        pytest.param(
            {"model_type": "none"}, "The checkpoint you are trying to load has model type", id="no such model"
        ),
        pytest.param({"hidden_size": 64}, "You set `ignore_mismatched_sizes` to `False`", id="not of its weights"),
    ],
)
def test_a_configuration_that_is_wrong_is_told_in_a_line(tmp_path, changes, message, four_bits):
    told = read_with_changed_configuration(tmp_path, changes, four_bits)
    assert told.startswith(f"ModelLoadFailed: m cannot be loaded: {message}")
    assert "\n" not in told


def test_a_weight_in_four_bits_that_is_not_of_its_configuration_is_named(tmp_path):
    assert read_with_changed_configuration(tmp_path, {"intermediate_size": 80}, torch.float32) == (
        "ModelLoadFailed: m cannot be loaded: model.layers.0.mlp.gate_proj.weight is [64, 32] in its file, and "
        "[80, 32] by its config.json; copy both anew"
    )


def test_a_file_of_weights_that_is_whole_and_yet_wrong_is_told_as_damaged(tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    # What no type of safetensors is called, in as many letters.
    path.write_bytes(path.read_bytes().replace(b'"BF16"', b'"BF61"'))
    with pytest.raises(UserError, match=r"^m has a damaged safetensors file: "):
        loaded(tmp_path, "cpu")
