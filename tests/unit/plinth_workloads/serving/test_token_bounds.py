"""How many tokens a model reads, and which it does not know."""

import pytest
from transformers import BloomConfig, GPT2Config, LlamaConfig

from plinth_workloads.serving.token_bounds import positions_of, unknown_token


class Model:
    def __init__(self, config):
        self.config = config


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        pytest.param(LlamaConfig(max_position_embeddings=77), 77, id="from its configuration"),
        pytest.param(GPT2Config(n_positions=78), 78, id="under a name of its own"),
        pytest.param(BloomConfig(), 2048, id="without any"),
    ],
)
def test_a_model_has_the_positions_of_its_configuration(config, positions):
    assert positions_of(Model(config)) == positions


@pytest.mark.parametrize(("token_ids", "unknown"), [([0, 5, 3], 5), ([2, -1, 1], -1)])
def test_a_token_that_the_model_does_not_know_is_named(token_ids, unknown):
    assert unknown_token(token_ids, 5) == f"token id {unknown} is outside of the model's vocabulary of 5"


@pytest.mark.parametrize("token_ids", [[], [0], [0, 4]])
def test_tokens_of_the_vocabulary_are_all_known(token_ids):
    assert unknown_token(token_ids, 5) is None
