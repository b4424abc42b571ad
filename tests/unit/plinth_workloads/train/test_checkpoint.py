import errno
import json
import threading
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from plinth_workloads.errors import UserError
from plinth_workloads.train import checkpoint as checkpoint_module
from plinth_workloads.train.checkpoint import (
    Checkpointer,
    complete_checkpoints,
    newest_checkpoint,
    set_aside,
)
from plinth_workloads.train.shards import ShardWriter
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


def save(checkpointer, step, model, optimizers, state):
    """Save, and wait until it is complete."""
    checkpointer.save(step, model, optimizers, state)
    (saved,) = checkpointer.saved(wait=True)
    return saved


@dataclass(frozen=True)
class Held:
    """Writers that wait: a save is as slow as the test wants it to be."""

    began: threading.Event = field(default_factory=threading.Event)
    may_go_on: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def held(monkeypatch):
    held = Held()

    class HeldWriter(ShardWriter):
        def write_data(self, plan, planner):
            held.began.set()
            assert held.may_go_on.wait(60)
            return super().write_data(plan, planner)

    monkeypatch.setattr(checkpoint_module, "ShardWriter", HeldWriter)
    return held


def test_what_is_saved_comes_back(checkpointer):
    model, optimizers = make_model()
    saved = save(checkpointer, 3, model, optimizers, {"tokens": 12})
    weights = model.weight.detach().clone()
    moments = optimizers[0].state[model.weight]["exp_avg"].clone()
    with torch.no_grad():
        model.weight.zero_()
        optimizers[0].state[model.weight]["exp_avg"].zero_()
    assert checkpointer.load(saved, model, optimizers) == {"tokens": 12, "step": 3}
    assert torch.equal(model.weight, weights)
    assert torch.equal(optimizers[0].state[model.weight]["exp_avg"], moments)


def test_what_changes_while_it_is_written_is_not_in_it(checkpointer, held):
    model, optimizers = make_model()
    state = {"evaluations": {}}
    before = model.weight.detach().clone()
    checkpointer.save(3, model, optimizers, state)
    assert held.began.wait(60)
    with torch.no_grad():
        model.weight.zero_()
    state["evaluations"]["3"] = 1.0
    held.may_go_on.set()
    (saved,) = checkpointer.saved(wait=True)
    assert not model.weight.any()
    assert checkpointer.load(saved, model, optimizers)["evaluations"] == {}
    assert torch.equal(model.weight, before)


def test_a_save_counts_when_it_is_complete_and_not_before(checkpointer, held):
    model, optimizers = make_model()
    checkpointer.save(1, model, optimizers, {})
    assert held.began.wait(60)
    assert list(checkpointer.saved()) == []
    assert newest_checkpoint(checkpointer.folder) is None
    assert [path.name for path in checkpointer.folder.iterdir()] == ["step-00000001.tmp"]
    held.may_go_on.set()
    assert checkpointer.newest().step == 1
    (saved,) = checkpointer.saved()
    assert (saved.step, saved.folder) == (1, checkpointer.newest().folder)
    assert 0 < saved.stall_seconds <= saved.seconds
    assert list(checkpointer.saved(wait=True)) == []


def test_the_next_save_waits_for_the_one_before(checkpointer, held):
    model, optimizers = make_model()
    checkpointer.save(1, model, optimizers, {})
    assert held.began.wait(60)
    threading.Timer(0.2, held.may_go_on.set).start()
    checkpointer.save(2, model, optimizers, {})
    assert held.may_go_on.is_set()
    assert newest_checkpoint(checkpointer.folder).step >= 1
    assert [saved.step for saved in checkpointer.saved(wait=True)] == [1, 2]


def test_the_last_ones_are_kept(checkpointer):
    model, optimizers = make_model()
    for step in (1, 2, 3, 10):
        save(checkpointer, step, model, optimizers, {})
    assert sorted(path.name for path in checkpointer.folder.iterdir()) == ["step-00000003", "step-00000010"]
    assert checkpointer.newest().step == 10


def test_an_incomplete_checkpoint_never_counts(checkpointer):
    model, optimizers = make_model()
    save(checkpointer, 1, model, optimizers, {})
    complete = checkpointer.folder / "step-00000001"
    complete.rename(checkpointer.folder / "step-00000002.tmp")
    assert checkpointer.newest() is None
    (checkpointer.folder / "step-00000003").mkdir()
    assert checkpointer.newest() is None


def test_a_damaged_one_that_is_set_aside_never_counts_and_goes_when_the_run_has_passed_it(checkpointer):
    model, optimizers = make_model()
    for step in (4, 8):
        save(checkpointer, step, model, optimizers, {})
    set_aside(checkpointer.newest())
    assert [checkpoint.step for checkpoint in complete_checkpoints(checkpointer.folder)] == [4]
    save(checkpointer, 6, model, optimizers, {})
    names = {path.name for path in checkpointer.folder.iterdir()}
    assert names == {"step-00000004", "step-00000006", "step-00000008.damaged"}
    save(checkpointer, 8, model, optimizers, {})
    assert {path.name for path in checkpointer.folder.iterdir()} == {"step-00000006", "step-00000008"}


def test_no_pickle_is_written(checkpointer):
    saved = save(checkpointer, 1, *make_model(), {})
    files = {path.name for path in saved.folder.iterdir()}
    assert files == {"shard-00001.safetensors", "checksums.sha256", "state.json"}
    assert "model.weight" in load_file(saved.folder / "shard-00001.safetensors")


def test_checkpoints_of_other_jobs_are_found_below_their_folder(checkpointer, tmp_path):
    save(checkpointer, 5, *make_model(), {})
    assert newest_checkpoint(tmp_path).step == 5
    assert newest_checkpoint(tmp_path / "nowhere") is None


FULL = r"step 2 cannot be saved .* no space is left .* the last good one is .*step-00000001"


@pytest.fixture
def full_disk(checkpointer, monkeypatch):
    """The checkpointer after a good save and one for which there was no space."""
    model, optimizers = make_model()
    save(checkpointer, 1, model, optimizers, {})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "_sync", full)
        checkpointer.save(2, model, optimizers, {})
        assert checkpointer.newest().step == 1
    return checkpointer


def test_a_failing_disk_is_a_sentence_and_leaves_the_last_good_one(full_disk):
    assert full_disk.has_failed
    with pytest.raises(UserError, match=FULL) as error:
        list(full_disk.saved())
    assert error.value.reason == "CheckpointFailed"
    assert [path.name for path in full_disk.folder.iterdir()] == ["step-00000001"]
    assert not full_disk.has_failed


def test_a_save_after_one_that_failed_tells_of_it(full_disk):
    with pytest.raises(UserError, match=FULL):
        full_disk.save(3, *make_model(), {})


def test_the_checkpoint_of_another_model_is_refused(checkpointer):
    saved = save(checkpointer, 1, *make_model(4), {})
    with pytest.raises(UserError, match=r"cannot be loaded into this model: .*; where it is of another model") as error:
        checkpointer.load(saved, *make_model(5))
    assert error.value.reason == "CheckpointFailed"


def test_saving_a_step_again_replaces_it(checkpointer):
    model, optimizers = make_model()
    save(checkpointer, 1, model, optimizers, {"tokens": 1})
    saved = save(checkpointer, 1, model, optimizers, {"tokens": 2})
    assert json.loads((saved.folder / "state.json").read_text())["tokens"] == 2
