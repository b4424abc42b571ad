"""The mode that a module is in: training, with dropout, or evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Without dropout and without gradients; after it the module is in the mode that it was in."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)
