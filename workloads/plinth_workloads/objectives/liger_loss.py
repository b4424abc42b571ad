"""Cross entropy of a plain linear head by liger-kernel's fused kernel, on GPUs.

Enters: hidden states, the head, labels, and how many logits may exist at once. Leaves: the loss summed over the labels,
or None where the kernel is not for this head, not installed, or gives other numbers than torch. It stands alone because
it is all that knows liger-kernel, without which everything works. It was not run on a GPU yet: a test runs its kernels
in Triton's interpreter.

Shapes: N labels, H hidden, V vocabulary.
"""

import inspect
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from plinth_workloads.data.loader import IGNORED
from plinth_workloads.models.output_difference import why_not

logger = logging.getLogger(__name__)

_DEVICE = "cuda"
_BUDGET = "chunk_mem_const"
_TOLERANCE = 0.02
"""Of the largest number: bf16 has 8 bits, and gradients are sums of its products."""


def liger_fits(
    *, device: str, dtype: torch.dtype, split: bool, hidden_moves: bool, head_moves: bool, rows: int, within: bool
) -> bool:
    """Whether the kernel can be asked at all, from what is known before it is run.

    Args:
        device: Type of the device.
        dtype: Of the head's weight.
        split: Whether tensor parallelism has split the head.
        hidden_moves: Whether the hidden states need a gradient. The kernel gives the head none without it.
        head_moves: Whether the head needs one.
        rows: N.
        within: Whether the fewest logits that it has at once are within what may exist.
    """
    return (
        device == _DEVICE
        and dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not split
        and (hidden_moves or not head_moves)
        and rows > 0
        and within
    )


def chunk_budget(rows: int, hidden: int, vocabulary: int, limit: int) -> int:
    """The largest budget, as liger counts it, with which it has at most `limit` logits at once; 0 where none has.

    A budget of c stands for c * N * H logits: liger divides N by ceil(V / (c * H)), and rounds up to a power of two.
    """
    rows_at_once = limit // vocabulary
    if rows_at_once >= rows:
        return -(-vocabulary // hidden)
    if not rows_at_once:
        return 0
    chunks = -(-rows // (1 << rows_at_once.bit_length() - 1))
    return max(0, -(-vocabulary // (hidden * (chunks - 1))) - 1)


def liger_cross_entropy(hidden_NH: Tensor, head: nn.Linear, labels_N: Tensor, limit: int) -> Tensor | None:
    """Cross entropy summed over the labels that are not IGNORED, or None where the kernel is not for it.

    Sums of gradients are in float32, gradients in the type of what they are of, products in that of autocast.

    Args:
        hidden_NH: What reaches the head.
        head: The model's output embeddings; nothing is done to its logits.
        labels_N: Token ids, or IGNORED.
        limit: Most logits at once.
    """
    weight_VH, bias_V = head.weight, head.bias
    budget = chunk_budget(len(labels_N), hidden_NH.shape[1], weight_VH.shape[0], limit)
    kind = hidden_NH.device.type
    graded = torch.is_grad_enabled()
    if not liger_fits(
        device=kind,
        dtype=weight_VH.dtype,
        split=isinstance(weight_VH, DTensor),
        hidden_moves=graded and hidden_NH.requires_grad,
        head_moves=graded and (weight_VH.requires_grad or (bias_V is not None and bias_V.requires_grad)),
        rows=len(labels_N),
        within=budget > 0,
    ):
        return None
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    if not liger_is_right(hidden_NH.device, weight_VH.dtype, autocast, bias_V is not None):
        return None
    return _fused_loss(hidden_NH, weight_VH, bias_V, labels_N, budget)


def _fused_loss(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, labels_N: Tensor, budget: int) -> Tensor:
    fused = _fused()
    assert fused is not None
    if not torch.is_autocast_enabled(hidden_NH.device.type):
        hidden_NH = hidden_NH.to(weight_VH.dtype)
    loss: Tensor = fused(
        hidden_NH,
        weight_VH,
        labels_N,
        bias_V,
        ignore_index=IGNORED,
        reduction="sum",
        accum_dtype=torch.float32,
        **{_BUDGET: budget},
    )
    return loss


@cache
def _fused() -> Callable[..., Any] | None:
    """The function of liger-kernel; None where that is not installed, or too old to be told of a budget."""
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError:
        return None
    known: Callable[..., Any] = liger_fused_linear_cross_entropy
    return known if _BUDGET in inspect.signature(known).parameters else None


@cache
def liger_is_right(device: torch.device, dtype: torch.dtype, autocast: torch.dtype | None, biased: bool) -> bool:
    """Whether the kernel is there and gives torch's loss and gradients, for a small head in several chunks.

    Asked once a process for each kind of head.
    """
    if _fused() is None:
        return False
    rows, hidden, vocabulary = 48, 64, 1000
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator, device=device) * hidden**-0.25
        return made.to(dtype).requires_grad_()

    leaves = [random(rows, hidden), random(vocabulary, hidden), *([random(vocabulary)] if biased else [])]
    labels_N = torch.randint(0, vocabulary, (rows,), generator=generator, device=device)
    labels_N[::5] = IGNORED
    budget = chunk_budget(rows, hidden, vocabulary, 16 * vocabulary)

    def by_liger() -> tuple[Tensor, ...]:
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            ours = _fused_loss(leaves[0], leaves[1], leaves[2] if biased else None, labels_N, budget)
        return ours, *torch.autograd.grad(ours / rows, leaves)

    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        logits_NV = F.linear(*(leaf.float() for leaf in leaves))
        loss = F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORED, reduction="sum")
        expected = (loss, *torch.autograd.grad(loss / rows, leaves))
        reason = why_not(by_liger, expected, tolerance=_TOLERANCE)
    if reason is not None:
        logger.warning("the loss is torch's, liger-kernel cannot be used: %s", reason)
    return reason is None
