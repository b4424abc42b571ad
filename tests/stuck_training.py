"""Trains in a process of its own, as torch_runs.py does, with something planted.

`python tests/stuck_training.py RUN_JSON WEIGHTS WHAT RANK PASS`: in one worker's forward pass of a number, training
passes counted from 1. "hang" sleeps, "nan" makes the loss no number; a rank of -1 plants nothing. Where WEIGHTS is "-",
the run is that of the entry point, with MLflow and all.
"""

import os
import sys
import time
from typing import Any

import training
from plinth_workloads.objectives.causal_lm import CausalLMLoss
from plinth_workloads.train import __main__ as entry_point

_forward = CausalLMLoss.forward


def hangs_in_its_forward_pass() -> None:
    time.sleep(600)


def plant(what: str, rank: int, number: int) -> None:
    """Replace the forward pass of the loss by one that does what is asked."""
    passes = 0

    def forward(self: CausalLMLoss, **batch: Any) -> Any:
        nonlocal passes
        passes += self.training
        planted = self.training and passes == number and int(os.environ.get("RANK", "0")) == rank
        if planted and what == "hang":
            hangs_in_its_forward_pass()
        loss = _forward(self, **batch)
        return loss * float("nan") if planted else loss

    CausalLMLoss.forward = forward  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    document, weights, what, rank, number = sys.argv[1:]
    plant(what, int(rank), int(number))
    if weights == "-":
        sys.argv[1:] = [document, "--launcher", "none"]
        sys.exit(entry_point.main())
    sys.argv[1:] = [document, weights]
    training.main()
