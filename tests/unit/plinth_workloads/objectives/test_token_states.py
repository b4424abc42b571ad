"""Log probabilities by chunks are the plain ones, with their gradients, and never hold the logits of a batch."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from made_tensors import MadeTensors
from plinth_workloads.data.loader import IGNORED
from plinth_workloads.objectives.chunked_loss import logit_transform
from plinth_workloads.objectives.token_states import row_log_probs, token_states

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "head_dim": 8,
}


def make_model(architecture):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **SIZES))


def make_batch(*, rows=3, width=20):
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(3, VOCABULARY, (rows, width), generator=generator)
    labels_BT = torch.cat([ids_BT[:, 1:], torch.full((rows, 1), IGNORED)], dim=1)
    labels_BT[0, :5] = IGNORED
    labels_BT[-1] = IGNORED
    return ids_BT, torch.arange(width).expand(rows, -1), labels_BT


def plain_log_probs(model, ids_BT, positions_BT, labels_BT):
    logits_BTV = model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits.float()
    found_BT = logits_BTV.log_softmax(-1).gather(2, labels_BT.clamp(min=0)[..., None])[..., 0]
    return (found_BT * (labels_BT != IGNORED)).sum(1)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("known", [True, False])
def test_a_rows_log_probability_is_the_plain_one_with_its_gradient(architecture, known):
    model, (ids_BT, positions_BT, labels_BT) = make_model(architecture), make_batch()
    transform = logit_transform(model) if known else None
    assert (transform is not None) == known
    weights_B = torch.tensor([1.0, -2.0, 3.0])
    gradients = []
    states = token_states(model, transform, ids_BT, positions_BT)
    ours_B = row_log_probs(states, labels_BT, chunk_logits=7 * VOCABULARY)
    plain_B = plain_log_probs(model, ids_BT, positions_BT, labels_BT)
    torch.testing.assert_close(ours_B, plain_B, rtol=1e-5, atol=1e-4)
    assert ours_B[-1] == 0
    for log_probs_B in (ours_B, plain_B):
        model.zero_grad()
        (log_probs_B * weights_B).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_no_logits_are_more_than_a_chunk():
    model, (ids_BT, positions_BT, labels_BT) = make_model("llama"), make_batch(rows=8, width=64)
    states = token_states(model, logit_transform(model), ids_BT, positions_BT)
    with MadeTensors() as made:
        row_log_probs(states, labels_BT, chunk_logits=16 * VOCABULARY).sum().backward()
    assert max(math.prod(shape) for shape in made.shapes if shape[-1:] == (VOCABULARY,)) == 16 * VOCABULARY
