"""Whether a model that computes in another way says the same: what both gave enters, how they differ leaves."""

from collections.abc import Callable, Sequence

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


def why_not(compute: Callable[[], Sequence[Tensor]], expected: Sequence[Tensor], *, tolerance: float) -> str | None:
    """Why tensors cannot be computed in another way, in words: it raises, or gives others; None where they can."""
    try:
        given = compute()
    # Compilers of kernels have exceptions of their own.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    pairs = [(ours.float(), theirs.float()) for ours, theirs in zip(given, expected, strict=True)]
    differences = (output_difference(*pair, bound=output_bound(pair[1], tolerance)) for pair in pairs)
    return next(filter(None, differences), None)
