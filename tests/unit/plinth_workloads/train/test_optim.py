import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from makers import make_pretrain_job
from plinth_api.resolve import resolve_train_run
from plinth_workloads.train.optim import build_optimizers, learning_rate_at
from training import settings_in


def training(tmp_path, **changes):
    return resolve_train_run(make_pretrain_job(training=changes), settings_in(tmp_path), {}).training


def rates(tmp_path, schedule, num_steps=100):
    settings = training(tmp_path, learningRate=1.0, schedule=schedule)
    return [learning_rate_at(step, num_steps, settings) for step in range(1, num_steps + 1)]


def test_warm_up_is_linear_from_zero(tmp_path):
    assert rates(tmp_path, {"name": "constant", "warmupSteps": 4})[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        pytest.param({"name": "cosine", "finalLearningRateFraction": 0.2}, {50: 0.6, 100: 0.2}, id="cosine"),
        pytest.param({"name": "linear", "finalLearningRateFraction": 0}, {50: 0.5, 100: 0.0}, id="linear"),
        pytest.param({"name": "constant"}, {1: 1.0, 100: 1.0}, id="constant"),
        pytest.param(
            {"name": "wsd", "decaySteps": 10, "finalLearningRateFraction": 0}, {90: 1.0, 95: 0.5, 100: 0.0}, id="wsd"
        ),
        pytest.param({"name": "wsd", "finalLearningRateFraction": 0}, {80: 1.0, 90: 0.5}, id="wsd of a fifth"),
    ],
)
def test_a_schedule_has_these_points(tmp_path, schedule, expected):
    seen = rates(tmp_path, schedule)
    assert {step: seen[step - 1] for step in expected} == pytest.approx(expected)


def tiny_llama():
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=64)
    )


def test_matrices_are_decayed_and_vectors_are_not(tmp_path):
    (optimizer,) = build_optimizers(tiny_llama(), training(tmp_path, optimizer={"weightDecay": 0.3}))
    by_decay = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in optimizer.param_groups}
    assert by_decay == {0.3: {2}, 0.0: {1}}


def test_muon_takes_hidden_matrices_only(tmp_path):
    model = tiny_llama()
    muon, adamw = build_optimizers(model, training(tmp_path, optimizer={"name": "muon"}))
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    assert isinstance(muon, torch.optim.Muon)
    assert taken == {id(p) for p in model.model.layers.parameters() if p.ndim == 2}
    left = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert left == {id(p) for p in model.parameters()} - taken


def test_states_of_eight_bits_lead_where_those_of_32_do(tmp_path):
    moved, states = {}, {}
    for name in ("adamw", "adamw8bit"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 1))
        (optimizer,) = build_optimizers(model, training(tmp_path, optimizer={"name": name, "weightDecay": 0.1}))
        input_BI, before = torch.randn(32, 64), model[0].weight.detach().clone()
        for _ in range(20):
            (model(input_BI) - input_BI[:, :1]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        moved[name] = (model[0].weight.detach() - before).flatten()
        states[name] = optimizer.state_dict()["state"]
    assert 0.99 < torch.cosine_similarity(moved["adamw8bit"], moved["adamw"], dim=0) < 0.9999
    # What a checkpoint can hold: tensors in a flat dictionary, two bytes for each element that is large enough.
    matrix, vector = states["adamw8bit"][0], states["adamw8bit"][2]
    assert {name: (value.dtype, value.numel()) for name, value in matrix.items()} == {
        "step": (torch.float32, 1),
        "state1": (torch.uint8, 64 * 128),
        "state2": (torch.uint8, 64 * 128),
        "absmax1": (torch.float32, 32),
        "absmax2": (torch.float32, 32),
    }
    assert {value.dtype for value in vector.values()} == {torch.float32}
    assert matrix["step"] == vector["step"] == 20


def test_frozen_weights_are_in_no_optimizer(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    (optimizer,) = build_optimizers(model, training(tmp_path))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
