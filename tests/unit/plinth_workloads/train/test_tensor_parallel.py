"""Which models can be split over workers, and what is said of those that cannot."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from plinth_workloads.errors import UserError
from plinth_workloads.train.tensor_parallel import check_split


def make_model(architecture="llama", **config):
    sizes = {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 6}
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **{"vocab_size": 32, "num_key_value_heads": 6, **sizes, **config})
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "gemma"])
@pytest.mark.parametrize("tensor", [2, 3, 6])
def test_models_with_a_plan_are_split(architecture, tensor):
    check_split(make_model(architecture, head_dim=4), tensor)


@pytest.mark.parametrize(
    ("make", "tensor", "said"),
    [
        pytest.param(
            lambda: AutoModelForCausalLM.from_config(
                AutoConfig.for_model("gpt2", n_embd=24, n_head=2, n_layer=1, vocab_size=32)
            ),
            2,
            "transformers has no plan to split gpt2; leave it out and raise spec.compute.parallelism.shard",
            id="no plan",
        ),
        pytest.param(
            lambda: make_model("phi3", pad_token_id=0),
            2,
            "phi3 cannot be split, for colwise_gather_output layers; leave it out and raise "
            "spec.compute.parallelism.shard",
            id="another kind of layer",
        ),
        pytest.param(make_model, 4, "4 does not divide the model's num_attention_heads = 6", id="heads"),
        pytest.param(
            lambda: make_model(num_key_value_heads=2),
            3,
            "3 does not divide the model's num_key_value_heads = 2",
            id="shared heads",
        ),
        pytest.param(
            lambda: make_model(intermediate_size=35),
            2,
            "2 does not divide the 35 features of layers.0.mlp.gate_proj",
            id="features",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_numbers(make, tensor, said):
    with pytest.raises(UserError) as refused:
        check_split(make(), tensor)
    assert refused.value.reason == "InvalidSpec"
    assert refused.value.message == f"spec.compute.parallelism.tensor: {said}"


def test_the_model_stays_as_it_was():
    model = make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_split(model, 2)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
