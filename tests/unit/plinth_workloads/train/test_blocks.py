"""Blocks that compute activations again train as those that do neither, and keep less."""

from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from plinth_workloads.models.attention import IMPLEMENTATION
from plinth_workloads.objectives.causal_lm import CausalLMLoss
from plinth_workloads.train.blocks import prepare_blocks
from plinth_workloads.train.parallel import transformer_blocks
from prepared_blocks import ARCHITECTURES, MODES, loss_and_gradients, make_batch, make_model, prepared
from training import make_train_run


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_computed_again_changes_no_number(name, tmp_path):
    model = make_model(name)
    found = [loss_and_gradients(prepared(model, tmp_path, mode), make_batch())[0] for mode in MODES]
    for other in found[1:]:
        assert all(torch.equal(other[name], value) for name, value in found[0].items())


@pytest.mark.parametrize("mode", MODES)
def test_adapters_beside_frozen_weights_get_the_same_gradients(mode, tmp_path):
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(make_model("llama"), config)
    expected = loss_and_gradients(model, make_batch())[0]
    model.zero_grad(set_to_none=True)
    found = loss_and_gradients(prepared(model, tmp_path, mode), make_batch())[0]
    assert sum(value is not None for value in found.values()) == 1 + 3 * 7 * 2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("gpus", "attention"), [(0, IMPLEMENTATION), (1, "sdpa")])
def test_attention_by_document_is_that_of_the_device_which_trains(gpus, attention, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = make_model("llama")
    run = make_train_run(tmp_path, compute={"perWorker": {"gpus": gpus}}, training={"compile": False})
    prepare_blocks(model, run, same_width=True)
    assert model.config._attn_implementation == attention


def test_full_keeps_less_than_half_of_what_none_keeps(tmp_path):
    model, batch = make_model("llama"), make_batch(rows=8, width=64)
    none, full = (loss_and_gradients(prepared(model, tmp_path, mode), batch)[1] for mode in ("none", "full"))
    assert full < 0.5 * none


def operations_of_backward(model):
    """How many matrix products, attentions and other operations the backward pass computes."""
    counted = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            kinds = {"aten.mm.default": "product", "plinth.document_attention.default": "attention"}
            counted[kinds.get(str(function), "other")] += 1
            return function(*arguments, **(options or {}))

    value = CausalLMLoss(model)(*make_batch())
    with Count():
        value.backward()
    return counted


def test_selective_computes_all_but_products_and_attention_again(tmp_path):
    model = make_model("llama")
    none, selective, full = (operations_of_backward(prepared(model, tmp_path, mode)) for mode in MODES)
    assert (selective["product"], selective["attention"]) == (none["product"], none["attention"])
    assert selective["other"] > none["other"]
    assert full["attention"] == none["attention"] + 3
    assert full["product"] > none["product"]


def test_weights_keep_their_names_and_evaluation_computes_once(tmp_path):
    model = make_model("llama")
    other = prepared(model, tmp_path, "full")
    assert list(other.state_dict()) == list(model.state_dict())
    calls = []
    for block in transformer_blocks(other):
        block.self_attn.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        CausalLMLoss(other).eval()(*make_batch())
    assert len(calls) == 2 * 3  # the look at the head, and the loss
