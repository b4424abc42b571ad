"""Packed layers: the same numbers, hooks and memory; left alone where a model or a machine does not go with them."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from plinth_workloads.models import packed_linear
from plinth_workloads.models.packed_linear import PackedLinear, pack_linear_layers


class Tied(nn.Module):
    """An embedding, a layer, and a head that shares the embedding's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.layer = nn.Linear(16, 16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids_N: Tensor) -> Tensor:
        made: Tensor = self.head(self.layer(self.embedding(ids_N)))
        return made


class ReadsItsWeights(Tied):
    """As some state space models do in their fast paths."""

    def forward(self, ids_N: Tensor) -> Tensor:
        return super().forward(ids_N) + (self.layer.weight * 2).sum()


def probe_of(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        made: Tensor = model(torch.tensor([3, 1, 39]))
    return made


def test_a_packed_model_gives_the_same_and_trains_its_embedding_as_before() -> None:
    torch.manual_seed(0)
    model = Tied()
    expected, embedding = probe_of(model), model.embedding.weight

    pack_linear_layers(model, partial(probe_of, model))

    assert {type(model.layer), type(model.head)} == {PackedLinear}
    assert model.layer.weight.is_mkldnn
    assert model.layer.weight.shape == (16, 16)
    assert model.embedding.weight is embedding
    assert not embedding.is_mkldnn
    torch.testing.assert_close(probe_of(model), expected)


@pytest.mark.parametrize("shape", [(16,), (1, 16), (33, 16), (2, 5, 16), (0, 16), (512, 16), (513, 16), (3, 400, 16)])
def test_any_shape_of_inputs_is_taken(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24))
    given = torch.randn(*shape)
    with torch.inference_mode():
        expected = model(given)
        pack_linear_layers(model, lambda: model(torch.ones(1, 16)))
        made = model(given)
    assert isinstance(model[0], PackedLinear)
    torch.testing.assert_close(made, expected)


def test_few_numbers_of_tokens_are_ever_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24))
    with torch.inference_mode():
        pack_linear_layers(model, lambda: model(torch.ones(1, 16)))
        met: set[int] = set()
        multiply = packed_linear._linear

        def noting(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            met.add(input.numel() // 16)
            return multiply(input, weight, bias)

        monkeypatch.setattr(packed_linear, "_linear", noting)
        for num_tokens in range(1, 1200):
            assert len(model(torch.zeros(num_tokens, 16))) == num_tokens
    assert met == set(packed_linear._NUMS_TOKENS)


def test_hooks_stay() -> None:
    model = Tied()
    seen: list[nn.Module] = []
    model.layer.register_forward_hook(lambda module, inputs, output: seen.append(module))
    pack_linear_layers(model, partial(probe_of, model))
    seen.clear()
    probe_of(model)
    assert seen == [model.layer]


def test_a_model_that_reads_the_weights_of_its_layers_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = ReadsItsWeights()
    expected, weight = probe_of(model), model.layer.weight.detach().clone()
    pack_linear_layers(model, partial(probe_of, model))
    assert {type(model.layer), type(model.head)} == {nn.Linear}
    assert torch.equal(model.layer.weight, weight)
    assert torch.equal(probe_of(model), expected)


class TheOtherWayRound(Tied):
    """As GPT-2 has its linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = Conv1D(24, 16), Conv1D(16, 24)
        self.layer = nn.Sequential(self.wide, self.narrow)  # type: ignore[assignment]


class ReadsTheOtherWayRound(TheOtherWayRound):
    """One of whose layers is computed without it."""

    def forward(self, ids_N: Tensor) -> Tensor:
        made: Tensor = super().forward(ids_N) + self.wide.weight.sum()
        return made


def test_layers_whose_weights_lie_the_other_way_round_are_packed_as_others() -> None:
    torch.manual_seed(0)
    model = TheOtherWayRound()
    expected = probe_of(model)
    pack_linear_layers(model, partial(probe_of, model))
    assert {type(layer) for layer in (model.wide, model.narrow)} == {PackedLinear}
    assert model.wide.weight.shape == (24, 16)
    torch.testing.assert_close(probe_of(model), expected)


def test_what_is_left_alone_in_the_end_lies_as_it_did() -> None:
    torch.manual_seed(0)
    model = ReadsTheOtherWayRound()
    expected, weight = probe_of(model), model.wide.weight.detach().clone()
    pack_linear_layers(model, partial(probe_of, model))
    assert {type(layer) for layer in (model.wide, model.narrow)} == {Conv1D}
    assert torch.equal(model.wide.weight, weight)
    assert torch.equal(probe_of(model), expected)


def test_other_precisions_and_subclasses_are_left_alone() -> None:
    class Own(nn.Linear):
        """Somebody's own layer."""

    for layer in (nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4, dtype=torch.bfloat16), Own(4, 4)):
        model = nn.Sequential(layer)
        pack_linear_layers(model, lambda: torch.zeros(1))
        assert model[0] is layer
        assert not layer.weight.is_mkldnn


def test_nothing_is_packed_where_torch_has_not_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(weight_OI: Tensor) -> Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(packed_linear, "_packed", missing)
    packed_linear._works.cache_clear()
    model = Tied()
    pack_linear_layers(model, partial(probe_of, model))
    packed_linear._works.cache_clear()
    assert type(model.layer) is nn.Linear
