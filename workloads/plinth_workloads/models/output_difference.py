"""Whether a model that computes in another way says the same: what both gave enters, how they differ leaves."""

import torch
from torch import Tensor


def output_bound(expected: Tensor, tolerance: float) -> float:
    """How far outputs may differ: a share of the largest number, as what adds in another order differs by less."""
    return tolerance * expected.nan_to_num().abs().max().item()


def output_difference(given: Tensor, expected: Tensor, *, bound: float) -> str | None:
    """How two outputs of one shape differ by more than the bound, in words; None where they do not."""
    if torch.allclose(given, expected, rtol=0, atol=bound, equal_nan=True):
        return None
    return f"its output differs by {(given - expected).abs().max().item():.3g}"
