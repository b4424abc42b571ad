"""Attention document by document gives transformers' numbers, and does no work between documents."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import create_causal_mask

from plinth_workloads.models.attention import (
    IMPLEMENTATION,
    attend_within_documents,
    dense_mask,
    documents,
    starts_of_documents,
)

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
ARCHITECTURES = {
    "llama": LLAMA,
    "gpt2": {**SMALL, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2},
    "gpt_neox": {**SMALL, "intermediate_size": 48},
    "qwen3": {**LLAMA, "head_dim": 8},
    "mistral": {**LLAMA, "sliding_window": 6},
}
WIDTH = 40


def make_models(architecture, **config):
    """The same model twice, the first of them attending document by document."""
    torch.manual_seed(0)
    settings = AutoConfig.for_model(architecture, **{**ARCHITECTURES[architecture], **config})
    model = AutoModelForCausalLM.from_config(settings).train()
    other = copy.deepcopy(model)
    assert attend_within_documents(model)
    assert (model.config._attn_implementation, other.config._attn_implementation) == (IMPLEMENTATION, "sdpa")
    return model, other


def make_batch():
    """Rows of three documents, of one, and of two."""
    ids_BT = torch.randint(0, 97, (3, WIDTH), generator=torch.Generator().manual_seed(0))
    positions_BT = torch.arange(WIDTH).repeat(3, 1)
    positions_BT[0, 5:] -= 5
    positions_BT[0, 20:] -= 15
    positions_BT[2, 33:] -= 33
    return ids_BT, positions_BT


def logits_of(model, ids_BT, positions_BT):
    return model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits


class Made(TorchDispatchMode):
    """Remembers the lengths of what was attended in one piece, and the shapes that were made."""

    def __init__(self):
        super().__init__()
        self.attended = []
        self.shapes = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is torch.ops.plinth.document_attention.default:
            self.attended += [tokens.stop - tokens.start for _, tokens in documents(arguments[3])]
        made = function(*arguments, **(options or {}))
        if isinstance(made, torch.Tensor):
            self.shapes.add(tuple(made.shape))
        return made


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_have_the_numbers_of_transformers(architecture):
    models = make_models(architecture)
    found = []
    for model in models:
        logits_BTV = logits_of(model, *make_batch())
        logits_BTV.square().sum().backward()
        found.append({"logits": logits_BTV.detach(), **{name: p.grad for name, p in model.named_parameters()}})
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max() + 1))


def test_bf16_is_as_near_as_two_ways_in_bf16_are():
    model, other = make_models("llama")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            logits_of(model, *make_batch()), logits_of(other, *make_batch()), rtol=0.05, atol=0.01
        )


def test_each_document_is_attended_by_itself_and_no_scores_are_masked():
    model, other = make_models("llama")
    with Made() as ours:
        logits_of(model, *make_batch())
    with Made() as plain:
        logits_of(other, *make_batch())
    assert ours.attended == [5, 15, 20, WIDTH, 33, 7] * 2
    assert any(shape[-2:] == (WIDTH, WIDTH) for shape in plain.shapes)
    assert not any(shape[-2:] == (WIDTH, WIDTH) for shape in ours.shapes)


def test_rows_of_one_document_are_attended_together():
    model, _ = make_models("llama")
    with Made() as ours:
        logits_of(model, make_batch()[0], torch.arange(WIDTH).repeat(3, 1))
    assert ours.attended == [WIDTH] * 2


def test_starts_say_what_the_mask_of_transformers_says():
    model, other = make_models("llama")
    ids_BT, positions_BT = make_batch()
    masks = [
        create_causal_mask(each.config, each.get_input_embeddings()(ids_BT), None, None, positions_BT)
        for each in (model, other)
    ]
    assert masks[0].shape == (3, 1, 1, WIDTH)
    assert torch.equal(dense_mask(masks[0]), masks[1])


def test_dropout_keeps_documents_apart():
    model, _ = make_models("llama", attention_dropout=0.5)
    ids_BT, positions_BT = make_batch()
    changed_BT = ids_BT.clone()
    changed_BT[0, :5] = 7
    found = []
    for ids in (ids_BT, changed_BT):
        torch.manual_seed(3)
        found.append(logits_of(model, ids, positions_BT)[0])
    assert torch.equal(found[0][5:], found[1][5:])
    assert not torch.equal(found[0][:5], found[1][:5])
    torch.manual_seed(4)
    assert not torch.equal(logits_of(model, ids_BT, positions_BT)[0], found[0])


def test_generation_with_a_cache_and_padding_is_as_it_was():
    model, other = (each.eval() for each in make_models("llama"))
    ids_BT, _ = make_batch()
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :9] = 0
    options = {"attention_mask": mask_BT, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids_BT, **options), other.generate(ids_BT, **options))


def test_a_model_with_another_attention_stays_as_it_is():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma2", **LLAMA, head_dim=8))
    assert model.config._attn_implementation == "eager"
    assert not attend_within_documents(model)
    assert model.config._attn_implementation == "eager"


def test_a_model_whose_numbers_would_change_goes_back_to_sdpa():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA))
    forward = model.forward

    def tells_the_attention(**inputs):
        output = forward(**inputs)
        output.logits = output.logits + float(model.config._attn_implementation == IMPLEMENTATION)
        return output

    model.forward = tells_the_attention
    assert not attend_within_documents(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_window_that_rows_exceed_is_left_to_transformers():
    def causal_window(row, head, query, key):
        return (key <= query) & (key > query - 3)

    mask = starts_of_documents(1, 8, 8, mask_function=causal_window, local_size=3)
    assert (mask.dtype, mask.shape) == (torch.bool, (1, 1, 8, 8))
