"""What a model is measured by on examples that it was not trained on."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

from plinth_api.run import TrainRun
from plinth_workloads.data.loader import Batch
from plinth_workloads.objectives.objective import Objective
from plinth_workloads.train.parallel import Workers, autocast

LOWER_IS_BETTER = frozenset({"loss", "perplexity", "kl"})


@torch.no_grad()
def measure(
    run: TrainRun, objective: Objective, loss: nn.Module, batches: Iterable[Batch], workers: Workers
) -> dict[str, float]:
    """The objective's metrics over all targets of all processes' batches.

    Args:
        run: Says in which precision.
        objective: Says what is added up, and what metrics it makes.
        loss: The objective's, in evaluation mode.
        batches: This process's share; every process has as many.
        workers: The processes.
    """
    totals: dict[str, float] = defaultdict(float)
    targets = 0
    for batch in batches:
        moved = batch.to(workers.device)
        with autocast(run, workers):
            for name, value in objective.sums(loss, moved.inputs).items():
                totals[name] += float(value)
        targets += batch.num_targets
    *summed, count = workers.sum(*totals.values(), targets)
    means = {name: value / max(1.0, count) for name, value in zip(totals, summed, strict=True)}
    return objective.metrics(means)
