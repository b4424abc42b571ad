"""Checkpoints that are written while the loop trains on."""

import errno
import threading
from pathlib import Path

import pytest

from plinth_workloads.errors import UserError
from plinth_workloads.train import checkpoint as checkpoint_module
from plinth_workloads.train.checkpoint import newest_checkpoint
from plinth_workloads.train.progress import ProgressLog, read_progress
from plinth_workloads.train.reporting import ProgressReporter
from plinth_workloads.train.shards import ShardWriter
from training import Losses, make_train_run, open_alone

HELD_SECONDS = 60


class Told(Losses):
    """Remembers the order in which it was told."""

    def __init__(self):
        super().__init__()
        self.order = []

    def on_step(self, step, metrics):
        self.order.append(f"step {step}")

    def on_checkpoint(self, checkpoint):
        self.order.append(f"checkpoint {checkpoint.step}")


@pytest.fixture
def may_write(monkeypatch):
    """No shard is written before it is set."""
    event = threading.Event()

    class HeldWriter(ShardWriter):
        def write_data(self, plan, planner):
            assert event.wait(HELD_SECONDS)
            return super().write_data(plan, planner)

    monkeypatch.setattr(checkpoint_module, "ShardWriter", HeldWriter)
    return event


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, may_write):
    session, _ = open_alone(make_train_run(tmp_path, training={"steps": 5}, checkpoint={"everySteps": 2}))

    class Releasing(Told):
        def on_step(self, step, metrics):
            super().on_step(step, metrics)
            if step == 4:
                may_write.set()

    told = Releasing()
    session.loop._reporters = [told]
    session.loop.train()
    # Of step 2 nothing was written before step 4 was done, where the next save had to wait for it.
    assert told.order.index("checkpoint 2") > told.order.index("step 4")
    assert [line for line in told.order if line.startswith("checkpoint")] == [f"checkpoint {n}" for n in (2, 4, 5)]
    assert told.order[-1] == "checkpoint 5", "the last one is waited for"


def test_a_save_that_fails_ends_the_run_at_the_next_step(tmp_path, monkeypatch):
    run = make_train_run(tmp_path)
    session, losses = open_alone(run)
    session.loop.train_step()
    session.loop.save()

    class FullDisk(ShardWriter):
        def write_data(self, plan, planner):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "ShardWriter", FullDisk)
    session.loop.train_step()
    session.loop._begin_save()
    assert session.loop._checkpointer.newest().step == 1
    with pytest.raises(UserError, match=r"of step 2 cannot be saved .* no space is left .*step-00000001") as error:
        session.loop.train()
    assert error.value.reason == "CheckpointFailed"
    assert session.loop.state.step == 2
    assert losses.checkpoints == [1]


def test_what_is_being_saved_is_kept_when_the_loss_is_not_a_number(tmp_path, may_write):
    run = make_train_run(tmp_path)
    session, losses = open_alone(run)
    session.loop.train_step()
    session.loop._begin_save()
    next(session.model.parameters()).data.fill_(float("nan"))
    threading.Timer(0.1, may_write.set).start()
    with pytest.raises(UserError, match=r"step 2: the loss is nan .* the last good checkpoint is of step 1"):
        session.loop.train()
    assert losses.checkpoints == [1]


def test_another_error_waits_for_what_is_being_saved_and_is_the_one_told(tmp_path, may_write):
    run = make_train_run(tmp_path)
    session, losses = open_alone(run)
    session.loop.train_step()
    session.loop._begin_save()

    def fail():
        raise MemoryError("all of it is used")

    session.loop._loader.next_step = fail
    threading.Timer(0.1, may_write.set).start()
    with pytest.raises(MemoryError):
        session.loop.train()
    assert losses.checkpoints == [1]
    assert newest_checkpoint(Path(run.checkpoint.uri.removeprefix("file://"))).step == 1


def test_how_long_a_save_took_and_held_training_up_is_told(tmp_path):
    run = make_train_run(tmp_path)
    session, _ = open_alone(run)
    session.loop._reporters = [ProgressReporter(ProgressLog(Path(run.work_dir)))]
    session.loop.train_step()
    session.loop.save()
    (told,) = [event for event, _ in read_progress(Path(run.work_dir)) if event["event"] == "checkpoint"]
    assert 0 < told["stallSeconds"] < told["seconds"]
