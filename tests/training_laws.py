"""What holds for every objective and every method, each law a function that fails where it does not hold."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plinth_api.run import TrainRun
from plinth_workloads.train.checkpoint import state_tensors
from training import open_alone, weights_of

MakeRun = Callable[[Path], TrainRun]
"""The same job with everything of it below a folder."""


def assert_stopping_changes_nothing(folder: Path, make_run: MakeRun, *, after: int = 2) -> None:
    """Stop `after` some steps, losing one more, and go on: losses, evaluations, weights and optimizer are the same."""
    undisturbed, all_losses = open_alone(make_run(folder / "undisturbed"))
    undisturbed.loop.train()
    run = make_run(folder / "stopped")
    first, _ = open_alone(run)
    # As `train` does: a model that was loaded comes in evaluation mode, without dropout.
    first.loss.train()
    for _ in range(after):
        first.loop.train_step()
    first.loop.save()
    first.loop.train_step()  # lost with the process
    second, losses = open_alone(run)
    assert second.loop.state.step == after
    second.loop.train()
    assert second.loop.state.step == undisturbed.loop.state.step > after
    assert losses.by_step == {step: loss for step, loss in all_losses.by_step.items() if step > after}
    assert second.loop.state.tokens == undisturbed.loop.state.tokens
    last = str(undisturbed.loop.state.step)
    assert second.loop.state.evaluations[last] == undisturbed.loop.state.evaluations[last]
    assert second.loop._loader.state_dict() == undisturbed.loop._loader.state_dict()
    ours, theirs = (state_tensors(session.model, session.loop._optimizers) for session in (second, undisturbed))
    assert set(ours) == set(theirs)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    ours, theirs = weights_of(second), weights_of(undisturbed)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def assert_passes_change_nothing(
    folder: Path, make_run: Callable[[Path, int], TrainRun], *, sizes: tuple[int, ...] = (8, 2), tolerance: float = 1e-4
) -> None:
    """The losses of a job are the same for every `microBatchSize`, which `make_run` is given beside its folder."""
    losses = []
    for size in sizes:
        session, seen = open_alone(make_run(folder / str(size), size))
        session.loop.train()
        losses.append(seen.by_step)
    assert losses[0]
    for other in losses[1:]:
        assert losses[0] == pytest.approx(other, abs=tolerance)
