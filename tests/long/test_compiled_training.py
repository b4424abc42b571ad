"""What else trains compiled as it does uncompiled; blocks, shards and the cache are integration tests."""

import pytest

from methods import make_code_model, make_method_run
from torch_runs import train
from training import make_train_run, open_alone

pytestmark = pytest.mark.integration


def test_a_process_of_torchrun_trains_compiled_as_it_does_uncompiled(tmp_path):
    losses = {}
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        _, losses[compiled] = train(make_train_run(folder, training={"compile": compiled}), folder)
    assert losses[True] == pytest.approx(losses[False], abs=1e-4)


def test_split_layers_train_compiled_as_they_do_uncompiled(tmp_path):
    """With the gradients of the embeddings, which reach no compiled block where their output is still on its way."""
    losses = {}
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        compute = {"workers": 2, "parallelism": {"tensor": 2}}
        run = make_train_run(folder, training={"steps": 4, "compile": compiled}, compute=compute)
        _, losses[compiled] = train(run, folder, processes=2)
    assert losses[True] == pytest.approx(losses[False], abs=1e-4)


def test_a_prefix_trains_compiled_as_it_does_uncompiled(tmp_path):
    base = make_code_model(tmp_path / "base")
    losses = {}
    for compiled in (False, True):
        training = {"steps": 3, "sequenceLength": 32, "compile": compiled}
        session, seen = open_alone(make_method_run(tmp_path / str(compiled), base, "prefix", training=training))
        session.loop.train()
        losses[compiled] = seen.by_step
    assert losses[True] == pytest.approx(losses[False], abs=1e-4)
