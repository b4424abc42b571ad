"""Tasks over two processes, in copies and in shards: the reference is found together, the steps are as alone."""

import pytest
import torch

from distillations import make_distillation_run, make_teacher_and_student
from preferences import make_preference_run
from torch_runs import train

pytestmark = pytest.mark.integration

COPIES = {"workers": 2}
SHARDS = {"workers": 2, "parallelism": {"shard": 2}}
SPEC = {"training": {"steps": 3, "globalBatchSize": 4, "learningRate": 1e-3}, "checkpoint": {"everySteps": 2}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_teacher_and_student(tmp_path_factory.mktemp("models"), steps=2)


def make_run(folder, models, task, **spec):
    """A run of a preference by a method, or of a distillation."""
    if task == "distillation":
        return make_distillation_run(folder, models, **SPEC, **spec)
    return make_preference_run(folder, models[0], *task.split(), **SPEC, **spec)


@pytest.mark.parametrize(
    ("task", "compute"), [("dpo lora", COPIES), ("dpo full", SHARDS), ("distillation", SHARDS)], ids=str
)
def test_two_processes_train_as_one_does(tmp_path, models, task, compute):
    weights, losses = train(make_run(tmp_path / "one", models, task), tmp_path / "one")
    found, found_losses = train(
        make_run(tmp_path / "two", models, task, compute=compute), tmp_path / "two", processes=2
    )
    assert found_losses == pytest.approx(losses, abs=1e-4)
    assert set(losses) == {1, 2, 3}
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)
