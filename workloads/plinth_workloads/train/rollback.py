"""What a loss that is not a number costs where `watchdog.onNaN` is Rollback: which batches are passed over.

A run goes back to its newest checkpoint and passes over the batches from there up to and including the offending step,
as PaLM's training did (https://arxiv.org/abs/2204.02311, section 5.1); the step counter goes back with the weights, so
that schedule and length of the run stay. Everything follows from the checkpoint and the data: an attempt that starts
again from the checkpoint meets the same loss, and passes over the same batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from plinth_workloads.errors import UserError
from plinth_workloads.train.checkpoint import Checkpoint

MOST_AT_ONE_PLACE = 3
"""Rollbacks to one checkpoint: after them it is not the data."""


class LossNotFinite(UserError):
    """A step whose loss or gradient norm is not a number.

    Attributes:
        step: Which.
    """

    def __init__(self, step: int, message: str) -> None:
        super().__init__("LossNaN", message)
        self.step = step

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        return (UserError, (self.reason, self.message))


@dataclass(frozen=True, slots=True)
class Rollback:
    """A way back.

    Attributes:
        step: The step whose loss was not a number.
        to_step: That of the checkpoint.
        skipped_steps: How many steps' batches are passed over, behind those that the checkpoint has seen and those that
            earlier rollbacks to it have passed over.
    """

    step: int
    to_step: int
    skipped_steps: int


def next_rollback(found: LossNotFinite, checkpoint: Checkpoint | None, earlier: Sequence[Rollback]) -> Rollback:
    """The way back from a loss that is not a number.

    Args:
        found: The loss.
        checkpoint: The newest, None where there is none.
        earlier: The rollbacks since that checkpoint.

    Raises:
        UserError: LossNaN, where there is nothing to go back to, or going back has not helped.
    """
    if checkpoint is None:
        raise UserError(
            "LossNaN",
            f"{found.message}: spec.watchdog.onNaN: Rollback needs one to go back to, lower spec.checkpoint.everySteps",
        ) from found
    if len(earlier) >= MOST_AT_ONE_PLACE:
        steps = ", ".join(str(rollback.step) for rollback in earlier)
        raise UserError(
            "LossNaN",
            f"{found.message}; {len(earlier)} rollbacks to step {checkpoint.step} have not helped (from steps {steps})",
        ) from found
    return Rollback(found.step, checkpoint.step, found.step - checkpoint.step)
