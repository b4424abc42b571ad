"""Sharded blocks that are compiled, compute activations again and share a chunked loss train as one plain process."""

import pytest
import torch

from torch_runs import train
from training import make_train_run

pytestmark = pytest.mark.integration


def test_two_shards_with_everything_on_train_as_one_process_without(tmp_path):
    plain = make_train_run(tmp_path / "plain", training={"steps": 3})
    expected, losses = train(plain, tmp_path / "plain")
    everything = {"steps": 3, "microBatchSize": 2, "compile": True, "activationCheckpointing": "selective"}
    run = make_train_run(tmp_path / "sharded", training=everything, compute={"workers": 2, "parallelism": {"shard": 2}})
    weights, found = train(run, tmp_path / "sharded", processes=2)
    assert found == pytest.approx(losses, abs=1e-4)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-4)
