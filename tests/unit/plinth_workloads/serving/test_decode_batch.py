"""Rows that join, decode and leave together have the logits that each has alone, without a cache."""

import pytest
import torch

from plinth_api.adaptation import Method
from plinth_workloads.models.adapters import attach
from plinth_workloads.serving.decode_batch import DecodeBatch
from plinth_workloads.serving.torch_engine import TorchEngine
from unit.plinth_workloads.serving.tiny_model import CONTEXT_LENGTH, make_model, make_tokenizer

METHODS = {
    "none": None,
    "prefix": {"prefix": {"numVirtualTokens": 5}},
    "prompt": {"prompt": {"numVirtualTokens": 5}},
    "promptEncoder": {"promptEncoder": {"numVirtualTokens": 5}},
}


def make_adapted(name):
    model, method = make_model(), METHODS[name]
    if method is None:
        return model
    return attach(model, Method.model_validate(method), make_tokenizer(), "models:/a/1", 64).eval()


def alone(model, row):
    return model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("name", METHODS)
def test_a_row_in_a_batch_is_what_it_is_alone(name):
    model = make_adapted(name)
    rows = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], [12, 13, 14, 15]]

    def check(logits_BV, indices):
        for logits_V, index in zip(logits_BV, indices, strict=True):
            torch.testing.assert_close(logits_V, alone(model, rows[index]), rtol=1e-4, atol=1e-4)

    def step(indices):
        for index in indices:
            rows[index].append(20 + index)
        check(batch.step([20 + index for index in indices]), indices)

    with torch.inference_mode():
        batch = DecodeBatch(model)
        check(batch.join(rows[:2]), [0, 1])
        step([0, 1])
        check(batch.join(rows[2:]), [2, 3])
        step([0, 1, 2, 3])
        batch.keep([0, 2])  # the longest leaves, and its columns with it
        step([0, 2])
        step([0, 2])


@pytest.mark.parametrize("name", METHODS)
def test_virtual_tokens_take_positions_from_the_context(name):
    engine = TorchEngine(make_adapted(name), make_tokenizer())
    assert engine._context_length == CONTEXT_LENGTH - (0 if name == "none" else 5)
