"""From the states of a text's tokens to one vector.

Shapes: N texts, T tokens, D dimensions.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pooled(states_NTD: Tensor, mask_NT: Tensor, poolings: Sequence[str] = ("mean",)) -> Tensor:
    """The vectors of texts, of length one, in fp32.

    Args:
        states_NTD: The last states of the tokens.
        mask_NT: 1 for tokens, 0 for padding, which follows them.
        poolings: Names of `POOLINGS`; several are put one behind the other.

    Returns:
        [N, D times the number of poolings].
    """
    vectors = [POOLINGS[name](states_NTD.float(), mask_NT) for name in poolings]
    return F.normalize(torch.cat(vectors, dim=-1), dim=-1)


def _mean(states_NTD: Tensor, mask_NT: Tensor) -> Tensor:
    mask_NT1 = mask_NT[..., None].float()
    return (states_NTD * mask_NT1).sum(1) / mask_NT1.sum(1)


def _first(states_NTD: Tensor, mask_NT: Tensor) -> Tensor:
    return states_NTD[:, 0]


def _last(states_NTD: Tensor, mask_NT: Tensor) -> Tensor:
    return states_NTD[torch.arange(len(states_NTD), device=states_NTD.device), mask_NT.sum(1) - 1]


def _max(states_NTD: Tensor, mask_NT: Tensor) -> Tensor:
    return states_NTD.masked_fill(mask_NT[..., None] == 0, -torch.inf).amax(1)


POOLINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "cls": _first,
    "lasttoken": _last,
    "max": _max,
}
"""By sentence-transformers' words: states and mask to vectors, [N, D]."""
