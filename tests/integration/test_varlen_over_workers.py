"""Workers that split weights attend as GPUs do, each for its part, and learn what one process learns.

The operator for GPUs is computed by CPUs here.
"""

from pathlib import Path

import pytest
import torch

import torch_runs
import varlen_operator
from training import make_train_run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Weights and losses of one process, attending as CPUs do."""
    folder = tmp_path_factory.mktemp("alone")
    return torch_runs.train(make_train_run(folder, training={"steps": 2}), folder)


@pytest.mark.parametrize("split", [{"shard": 2}, {"shard": 1, "tensor": 2}], ids=["shard", "tensor"])
def test_two_workers_learn_what_one_learns(split, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_runs, "TRAINING", str(Path(varlen_operator.__file__)))
    training = {"steps": 2, "microBatchSize": 2, "activationCheckpointing": "selective"}
    run = make_train_run(tmp_path, training=training, compute={"workers": 2, "parallelism": split})
    weights, losses = torch_runs.train(run, tmp_path, processes=2)
    expected, expected_losses = alone
    assert losses == pytest.approx(expected_losses, abs=1e-4)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-4)
