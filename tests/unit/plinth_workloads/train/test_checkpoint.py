import errno
import json

import pytest
import torch
from torch import nn

from plinth_workloads.errors import UserError
from plinth_workloads.train import checkpoint as checkpoint_module
from plinth_workloads.train.checkpoint import Checkpointer, newest_checkpoint
from training import ALONE


@pytest.fixture
def checkpointer(tmp_path):
    return Checkpointer(tmp_path / "checkpoints", 2, ALONE)


def make_model(width=4):
    torch.manual_seed(0)
    model = nn.Linear(width, width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return model, [optimizer]


def test_what_is_saved_comes_back(checkpointer):
    model, optimizers = make_model()
    saved = checkpointer.save(3, model, optimizers, {"tokens": 12})
    weights = model.weight.detach().clone()
    moments = optimizers[0].state[model.weight]["exp_avg"].clone()
    with torch.no_grad():
        model.weight.zero_()
        optimizers[0].state[model.weight]["exp_avg"].zero_()
    assert checkpointer.load(saved, model, optimizers) == {"tokens": 12, "step": 3}
    assert torch.equal(model.weight, weights)
    assert torch.equal(optimizers[0].state[model.weight]["exp_avg"], moments)


def test_the_last_ones_are_kept(checkpointer):
    model, optimizers = make_model()
    for step in (1, 2, 3, 10):
        checkpointer.save(step, model, optimizers, {})
    assert sorted(path.name for path in checkpointer.folder.iterdir()) == ["step-00000003", "step-00000010"]
    assert checkpointer.newest().step == 10


def test_an_incomplete_checkpoint_never_counts(checkpointer):
    model, optimizers = make_model()
    checkpointer.save(1, model, optimizers, {})
    complete = checkpointer.folder / "step-00000001"
    complete.rename(checkpointer.folder / "step-00000002.tmp")
    assert checkpointer.newest() is None
    (checkpointer.folder / "step-00000003").mkdir()
    assert checkpointer.newest() is None


def test_no_pickle_is_written(checkpointer):
    saved = checkpointer.save(1, *make_model(), {})
    assert {path.suffix for path in saved.folder.iterdir()} == {".safetensors", ".json"}


def test_checkpoints_of_other_jobs_are_found_below_their_folder(checkpointer, tmp_path):
    checkpointer.save(5, *make_model(), {})
    assert newest_checkpoint(tmp_path).step == 5
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_failing_disk_is_a_sentence_and_leaves_the_last_good_one(checkpointer, monkeypatch):
    model, optimizers = make_model()
    checkpointer.save(1, model, optimizers, {})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "_sync", full)
    with pytest.raises(
        UserError, match=r"step 2 cannot be saved .* no space is left .* the last good one is .*step-00000001"
    ):
        checkpointer.save(2, model, optimizers, {})
    assert [path.name for path in checkpointer.folder.iterdir()] == ["step-00000001"]


def test_the_checkpoint_of_another_model_is_refused(checkpointer):
    saved = checkpointer.save(1, *make_model(4), {})
    with pytest.raises(UserError, match=r"cannot be loaded into this model") as error:
        checkpointer.load(saved, *make_model(5))
    assert error.value.reason == "CheckpointFailed"


def test_a_damaged_checkpoint_is_refused(checkpointer):
    model, optimizers = make_model()
    saved = checkpointer.save(1, model, optimizers, {})
    (shard,) = saved.folder.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"of another model or damaged"):
        checkpointer.load(saved, model, optimizers)


def test_saving_a_step_again_replaces_it(checkpointer):
    model, optimizers = make_model()
    checkpointer.save(1, model, optimizers, {"tokens": 1})
    saved = checkpointer.save(1, model, optimizers, {"tokens": 2})
    assert json.loads((saved.folder / "state.json").read_text())["tokens"] == 2
