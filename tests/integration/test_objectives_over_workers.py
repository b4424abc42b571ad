"""The laws of training over several processes, for objectives other than causalLM: the rows of a step, what is hidden
in them, and what a text is compared with do not depend on how many processes share them."""

import pytest
import torch

from objective_runs import make_objective_run, write_docstrings
from torch_runs import train

pytestmark = pytest.mark.integration

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SPREADS = {
    "copies": {"compute": {"workers": 2}},
    "shards": {"compute": {"workers": 2, "parallelism": {"shard": 2}}},
}


def make_run(folder, objective, settings, **spec):
    folder.mkdir()
    write_docstrings(folder / "pairs.jsonl")
    corpus = {"contrastiveText": "pairs.jsonl"}.get(objective, "corpus.jsonl")
    changes = {
        "settings": settings,
        "model": {"architecture": "bert", "config": NO_DROPOUT},
        "data": {"train": [{"uri": f"file://{folder}/{corpus}"}]},
        "training": {"steps": 4, "globalBatchSize": 8, "sequenceLength": 32},
    }
    return make_objective_run(folder, objective, architecture="bert", **{**changes, **spec})


OBJECTIVES = {
    "contrastiveText": {"temperature": 0.2},
    "maskedLM": {"nextSentence": True, "wholeWord": True},
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Weights and losses of each objective in one process."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: train(make_run(folder / name, name, OBJECTIVES[name]), folder / name) for name in OBJECTIVES}


@pytest.mark.parametrize(
    ("objective", "spread"), [("contrastiveText", "copies"), ("contrastiveText", "shards"), ("maskedLM", "shards")]
)
def test_two_processes_train_as_one_does(tmp_path, alone, objective, spread):
    run = make_run(tmp_path / "two", objective, OBJECTIVES[objective], **SPREADS[spread])
    weights, losses = train(run, tmp_path / "two", processes=2)
    assert losses == pytest.approx(alone[objective][1], abs=1e-4)
    assert set(losses) == {1, 2, 3, 4}
    for name, value in alone[objective][0].items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-4)
