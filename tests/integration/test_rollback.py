"""What a loss that is not a number costs: batches that are passed over, and nothing else."""

import pickle

import pytest
import torch
from torch import nn

from plinth_workloads.errors import UserError
from plinth_workloads.train.progress import ProgressLog, read_progress
from plinth_workloads.train.reporting import ProgressReporter, TrackingReporter
from plinth_workloads.train.rollback import LossNotFinite, Rollback
from training import Losses, make_train_run, open_alone, weights_of


class PoisonedLoss(nn.Module):
    """The loss, not a number for the batches that it is given."""

    def __init__(self, loss, poison):
        super().__init__()
        self.inner, self.poison = loss, poison

    def forward(self, input_ids_BT, position_ids_BT, labels_BT):
        loss = self.inner(input_ids_BT, position_ids_BT, labels_BT)
        return loss * float("nan") if any(torch.equal(input_ids_BT, ids) for ids in self.poison) else loss


class Killed(BaseException):
    """The end of a process, as far as a test can have one."""


class LossesUntil(Losses):
    """Remembers losses until the process is killed."""

    dies_at = 0

    def on_step(self, step, metrics):
        super().on_step(step, metrics)
        if step == self.dies_at:
            raise Killed


def batches_of(run, steps):
    """The input ids of some steps of the undisturbed run."""
    session, _ = open_alone(run)
    ids = {step: session.loop._loader.next_step()[0].inputs["input_ids_BT"] for step in range(1, max(steps) + 1)}
    return [ids[step] for step in steps]


def poisoned_run(folder, **watchdog):
    return make_train_run(folder, checkpoint={"everySteps": 3}, watchdog={"onNaN": "Rollback", **watchdog})


def open_poisoned(run, poison):
    session, losses = open_alone(run)
    session.loop._loss = PoisonedLoss(session.loss, poison)
    return session, losses


def never_had(folder, *, until, skipped):
    """The weights of a run whose batches behind step `until` were never there."""
    session, losses = open_alone(make_train_run(folder, checkpoint={"everySteps": 3}))
    for _ in range(until):
        session.loop.train_step()
    for _ in range(skipped):
        session.loop._loader.next_step()
    session.loop.train()
    return session, losses


def same_weights(session, other):
    ours, theirs = weights_of(session), weights_of(other)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_that_goes_back_is_the_run_that_never_had_those_batches(tmp_path):
    run = poisoned_run(tmp_path / "poisoned")
    session, losses = open_poisoned(run, batches_of(run, [5]))
    assert session.loop.train() == "finished"
    assert losses.rollbacks == [Rollback(step=5, to_step=3, skipped_steps=2)]
    assert losses.checkpoints == [3, 6, 9, 10]
    clean, clean_losses = never_had(tmp_path / "clean", until=3, skipped=2)
    assert same_weights(session, clean)
    assert losses.by_step == clean_losses.by_step
    assert session.loop.state.tokens == clean.loop.state.tokens
    assert session.loop._loader.state_dict() == clean.loop._loader.state_dict()


def test_several_rollbacks_to_one_place_pass_over_all_of_their_batches(tmp_path):
    run = poisoned_run(tmp_path / "poisoned")
    # The second is met one step behind the checkpoint once the batches of steps 4 and 5 are passed over.
    session, losses = open_poisoned(run, batches_of(run, [5, 6]))
    session.loop.train()
    assert losses.rollbacks == [Rollback(5, 3, 2), Rollback(4, 3, 1)]
    clean, _ = never_had(tmp_path / "clean", until=3, skipped=3)
    assert same_weights(session, clean)


@pytest.mark.parametrize("killed_after", [5, 8], ids=["before the next checkpoint", "after the next checkpoint"])
def test_resumed_after_a_rollback_it_is_the_run_that_was_never_stopped(tmp_path, killed_after):
    poison = batches_of(poisoned_run(tmp_path / "all"), [5])
    whole, _ = open_poisoned(poisoned_run(tmp_path / "all"), poison)
    whole.loop.train()
    run = poisoned_run(tmp_path / "killed")
    first, _ = open_poisoned(run, poison)
    losses = LossesUntil()
    losses.dies_at = killed_after
    first.loop._reporters = [losses]
    with pytest.raises(Killed):
        first.loop.train()
    assert len(losses.rollbacks) == 1
    second, again = open_poisoned(run, poison)
    assert second.loop.state.step == (3 if killed_after == 5 else 6)
    second.loop.train()
    assert same_weights(second, whole)
    assert len(again.rollbacks) == (1 if killed_after == 5 else 0)
    assert second.loop.state.rollbacks == whole.loop.state.rollbacks == [Rollback(5, 3, 2)]


def test_going_back_three_times_to_one_place_is_enough(tmp_path):
    run = poisoned_run(tmp_path)
    session, losses = open_poisoned(run, batches_of(run, [5, 6, 7, 8]))
    with pytest.raises(UserError, match=r"3 rollbacks to step 3 have not helped \(from steps 5, 4, 4\)") as error:
        session.loop.train()
    assert error.value.reason == "LossNaN"
    assert "step 4: the loss is nan" in error.value.message
    assert len(losses.rollbacks) == 3


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    run = poisoned_run(tmp_path)
    session, losses = open_poisoned(run, batches_of(run, [2]))
    with pytest.raises(UserError, match=r"needs one to go back to, lower spec.checkpoint.everySteps") as error:
        session.loop.train()
    assert error.value.reason == "LossNaN"
    assert losses.rollbacks == ()


def test_another_jobs_checkpoint_is_gone_back_to_as_well(tmp_path):
    first, _ = open_alone(make_train_run(tmp_path, checkpoint={"uri": f"file://{tmp_path}/first"}))
    first.loop.train()
    from_there = {"uri": f"file://{tmp_path}/second", "resumeFrom": f"file://{tmp_path}/first", "everySteps": 5}
    run = make_train_run(tmp_path, training={"steps": 16}, checkpoint=from_there, watchdog={"onNaN": "Rollback"})
    session, losses = open_poisoned(run, [])
    session.loop._loss.poison = batches_of(make_train_run(tmp_path / "order"), [12])
    session.loop.train()
    assert losses.rollbacks == [Rollback(12, 10, 2)]


def test_fail_is_the_default_and_goes_nowhere(tmp_path):
    run = make_train_run(tmp_path, checkpoint={"everySteps": 3})
    session, losses = open_poisoned(run, batches_of(run, [5]))
    with pytest.raises(LossNotFinite, match=r"step 5: the loss is nan .* the last good checkpoint is of step 3"):
        session.loop.train()
    assert session.loop.state.step == 5
    assert losses.rollbacks == ()


def test_the_failure_crosses_processes_as_a_plain_sentence():
    copied = pickle.loads(pickle.dumps(LossNotFinite(7, "step 7: the loss is nan")))
    assert (type(copied), copied.reason, copied.message) == (UserError, "LossNaN", "step 7: the loss is nan")


class FakeTracker:
    def __init__(self):
        self.metrics, self.tags = [], {}

    def log_metrics(self, step, metrics):
        self.metrics.append((step, dict(metrics)))

    def log_tags(self, tags):
        self.tags |= tags


def test_a_rollback_is_told_to_the_progress_file_and_to_mlflow(tmp_path):
    rollbacks = [Rollback(5, 3, 2), Rollback(4, 3, 1)]
    log, tracker = ProgressLog(tmp_path), FakeTracker()
    ProgressReporter(log).on_rollback(rollbacks)
    TrackingReporter(tracker).on_rollback(rollbacks)
    log.close()
    ((event, _),) = read_progress(tmp_path)
    event.pop("time")
    assert event == {"event": "rollback", "step": 4, "toStep": 3, "skippedSteps": 1}
    assert tracker.metrics == [(4, {"train/rollbacks": 2.0})]
    assert tracker.tags == {"plinth.rollbacks": "5->3 4->3"}
