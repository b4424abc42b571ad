"""The loss by chunks is the plain loss, for every kind of head, and never holds the logits of a batch."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from made_tensors import MadeTensors
from plinth_workloads.data.loader import IGNORED
from plinth_workloads.objectives.causal_lm import CausalLMLoss
from plinth_workloads.objectives.chunked_loss import LogitTransform, chunked_cross_entropy, logit_transform

VOCABULARY = 97
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
ARCHITECTURES = {
    "llama": LLAMA,
    "llama tied": {**LLAMA, "tie_word_embeddings": True},
    "gpt2": {**SMALL, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neox": {**SMALL, "intermediate_size": 48},
    "qwen3": {**LLAMA, "head_dim": 8},
    "gemma2": {**LLAMA, "head_dim": 8, "final_logit_softcapping": 0.5},
    "cohere": {**LLAMA, "logit_scale": 0.3},
    "granite": {**LLAMA, "logits_scaling": 4.0},
    "phi": {**SMALL, "intermediate_size": 48},
}


def make_model(name):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **ARCHITECTURES[name])
    return AutoModelForCausalLM.from_config(config).train()


def make_batch(*, rows=3, width=20):
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, VOCABULARY, (rows, width), generator=generator)
    positions_BT = torch.arange(width).expand(rows, -1).clone()
    positions_BT[0, 12:] -= 12
    labels_BT = torch.randint(0, VOCABULARY, (rows, width), generator=generator)
    labels_BT[0, :5] = labels_BT[1, 7:] = IGNORED
    return ids_BT, positions_BT, labels_BT


def plain_loss(model, ids_BT, positions_BT, labels_BT):
    logits_BTV = model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum")


def gradients_of(model):
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def assert_same_numbers(model, batch, monkeypatch, **tolerance):
    """Loss and gradients of the model by chunks of a few tokens equal those of the plain loss."""
    monkeypatch.setattr("plinth_workloads.objectives.chunked_loss.CHUNK_LOGITS", {"cpu": 7 * VOCABULARY})
    other = copy.deepcopy(model)
    assert logit_transform(model) is not None
    ours = CausalLMLoss(model)(*batch)
    plain = plain_loss(other, *batch)
    torch.testing.assert_close(ours, plain, **tolerance)
    (ours / 40).backward()
    (plain / 40).backward()
    expected = gradients_of(other)
    assert set(gradients_of(model)) == set(expected)
    for name, value in gradients_of(model).items():
        torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loss_by_chunks_is_the_plain_loss(name, monkeypatch):
    assert_same_numbers(make_model(name), make_batch(), monkeypatch, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite"])
def test_a_device_that_nothing_is_asked_of_gives_the_same_numbers(name, monkeypatch):
    monkeypatch.setattr("plinth_workloads.objectives.chunked_loss._answers_at_once", lambda device: False)
    assert_same_numbers(make_model(name), make_batch(), monkeypatch, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_a_label_that_is_all_but_impossible_has_the_plain_loss(scale, monkeypatch):
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    ids_BT, positions_BT, labels_BT = make_batch()
    with torch.no_grad():
        probabilities_BTV = model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits.softmax(-1)
    smallest = probabilities_BTV.gather(2, labels_BT.clamp_min(0)[..., None]).min()
    assert (smallest == 0) == (scale == 1000.0)
    assert_same_numbers(model, (ids_BT, positions_BT, labels_BT), monkeypatch, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_with_an_adapter_beside_or_on_the_head_too(targets, monkeypatch):
    config = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(make_model("llama"), config)
    assert any("lm_head" in name for name, value in model.named_parameters() if value.requires_grad) == (
        "lm_head" in targets
    )
    assert_same_numbers(model, make_batch(), monkeypatch, rtol=1e-4, atol=1e-6)


def test_a_batch_without_labels_has_no_loss_and_zero_gradients(monkeypatch):
    ids_BT, positions_BT, _ = make_batch()
    nothing = torch.full_like(ids_BT, IGNORED)
    assert_same_numbers(make_model("llama"), (ids_BT, positions_BT, nothing), monkeypatch)


def test_under_autocast_it_is_nearer_to_fp32_than_the_logits_of_bf16_are():
    torch.manual_seed(0)
    head = nn.Linear(64, VOCABULARY, bias=False)
    hidden_BTH, labels_BT = torch.randn(2, 50, 64), torch.randint(0, VOCABULARY, (2, 50))
    exact = chunked_cross_entropy(hidden_BTH, head, labels_BT, LogitTransform())
    with torch.autocast("cpu", torch.bfloat16):
        ours = chunked_cross_entropy(hidden_BTH, head, labels_BT, LogitTransform(), chunk_logits=7 * VOCABULARY)
        summed_in_bf16 = -head(hidden_BTH).log_softmax(-1).bfloat16().gather(2, labels_BT[..., None]).sum()
    assert ours.dtype == torch.float32
    assert abs(ours - exact) < 0.1 * abs(summed_in_bf16 - exact)
    ours.backward()
    assert head.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("rank", [0, 4])
def test_no_logits_are_more_than_a_chunk(rank):
    model = make_model("llama")
    if rank:
        model = get_peft_model(model, LoraConfig(r=rank, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    hidden_BTH = torch.randn(8, 128, 32, requires_grad=True)
    labels_BT = torch.randint(0, VOCABULARY, (8, 128))
    head = model.get_output_embeddings()
    with MadeTensors() as made:
        chunked_cross_entropy(hidden_BTH, head, labels_BT, LogitTransform(), chunk_logits=64 * VOCABULARY).backward()
    logits = [math.prod(shape) for shape in made.shapes if shape[-1:] == (VOCABULARY,)]
    assert max(logits) == 64 * VOCABULARY


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_head_takes_no_memory_for_a_gradient(frozen):
    model = make_model("llama")
    model.lm_head.weight.requires_grad_(not frozen)
    hidden_BTH = torch.randn(1, 2, 32, requires_grad=True)
    with MadeTensors() as made:
        chunked_cross_entropy(hidden_BTH, model.lm_head, torch.tensor([[3, 4]]), LogitTransform()).backward()
    assert (model.lm_head.weight.grad is None) == frozen
    assert ((VOCABULARY, 32) in made.shapes) != frozen
    assert hidden_BTH.grad is not None


def test_a_model_that_does_more_to_its_logits_keeps_the_plain_way():
    model = make_model("llama")
    forward = type(model).forward

    def shifted(*arguments, **options):
        output = forward(model, *arguments, **options)
        output.logits = output.logits.roll(1, -1)
        return output

    model.forward = shifted
    assert logit_transform(model) is None
    batch = make_batch()
    torch.testing.assert_close(CausalLMLoss(model)(*batch), plain_loss(model, *batch))


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_left_on_the_model(replaced):
    model = make_model("gemma2")
    if replaced:
        model.lm_head.forward = lambda hidden: F.linear(hidden, model.lm_head.weight)
    before = dict(vars(model.lm_head))
    loss = CausalLMLoss(model)
    loss(*make_batch())
    assert dict(vars(model.lm_head)) == before
    assert model.training
