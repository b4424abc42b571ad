"""What a model is measured by on examples that it was not trained on."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from plinth_api.run import TrainRun
from plinth_workloads.data.loader import IGNORED, Batch
from plinth_workloads.train.parallel import Workers, autocast

LOWER_IS_BETTER = frozenset({"loss", "perplexity"})


@torch.no_grad()
def measure(run: TrainRun, loss: nn.Module, batches: Iterable[Batch], workers: Workers) -> dict[str, float]:
    """Mean loss over all targets of all processes' batches, and the perplexity that it stands for.

    Args:
        run: Says in which precision.
        loss: Returns the loss summed over a batch's labels; in evaluation mode.
        batches: This process's share; every process has as many.
        workers: The processes.
    """
    total, targets = 0.0, 0
    for batch in batches:
        moved = batch.to(workers.device)
        with autocast(run, workers):
            total += float(loss(moved.input_ids_BT, moved.position_ids_BT, moved.labels_BT))
        targets += int((batch.labels_BT != IGNORED).sum())
    summed, count = workers.sum(total, targets)
    mean = summed / max(1.0, count)
    return {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}
