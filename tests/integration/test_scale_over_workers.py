"""Every way to spread a run over four processes learns what one process learns, also resumed, and exports it.

Stated tolerance: losses and weights within 1e-5.
"""

import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plinth_workloads.train.export import export_model
from spread_runs import train_all
from torch_runs import losses_of
from training import ALONE, make_train_run, open_alone, write_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

OTHER_MODEL = {
    "architecture": "qwen3",
    "config": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
}
"""Keys and values shared by heads, norms inside attention, a head that is the embeddings."""

SPREADS = {
    "shards-in-copies": {"compute": {"parallelism": {"shard": 2, "replicate": 2}}, "training": {"microBatchSize": 1}},
    "found-for-shards-in-copies": {
        "compute": {"parallelism": {"shard": 2}},
        "training": {"microBatchSize": "auto"},
    },
    "found-for-copies": {"training": {"microBatchSize": "auto"}},
    "split-layers-in-copies": {"compute": {"parallelism": {"tensor": 2}}},
    "split-layers-in-shards": {
        "compute": {"parallelism": {"tensor": 2, "shard": 2}},
        "training": {"activationCheckpointing": "full"},
    },
    "split-layers-of-norms": {"compute": {"parallelism": {"tensor": 2, "shard": 2}}, "model": OTHER_MODEL},
}


def make_run(folder, *, workers=4, compute=None, training=None, model=None):
    return make_train_run(
        folder,
        model=model or {},
        training={"steps": 4, **(training or {})},
        checkpoint={"everySteps": 2},
        evaluation={"everySteps": 4},
        compute={"workers": workers, **(compute or {})},
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("spread")
    found = {name: make_run(root / name, **spec) for name, spec in SPREADS.items()}
    train_all([write_run(run, root / name) for name, run in found.items()], processes=4)
    return root, found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """By its model's settings, what one process learns."""

    @functools.cache
    def learned(is_other):
        folder = tmp_path_factory.mktemp("alone")
        session, losses = open_alone(make_run(folder, workers=1, model=OTHER_MODEL if is_other else None))
        session.loop.train()
        export_model(session.run, session.model, session.data.tokenizer, ALONE, folder / "model")
        return load_file(folder / "model" / "model.safetensors"), losses.by_step

    return learned


@pytest.mark.parametrize("name", SPREADS)
def test_four_processes_learn_what_one_does_and_export_it(runs, alone, name):
    root, found = runs
    weights, losses = alone("model" in SPREADS[name])
    assert losses_of(found[name]) == pytest.approx(losses, abs=1e-5)
    exported = load_file(root / name / "model" / "model.safetensors")
    assert set(exported) == set(weights)
    for tensor, value in weights.items():
        torch.testing.assert_close(exported[tensor], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SPREADS if "found" in name])
def test_workers_agree_on_the_rows_of_a_pass_and_find_them_again(runs, name):
    run = runs[1][name]
    lines = [json.loads(line) for line in (Path(run.work_dir) / "progress.jsonl").read_text().splitlines()]
    sizes = [line["rows"] for line in lines if line["event"] == "microBatchSize"]
    (remembered,) = Path(run.work_dir, "cache").glob("micro-batch-*.json")
    assert sizes == [json.loads(remembered.read_text())["rows"]] * 2
    assert sizes[0] in (1, 2)
