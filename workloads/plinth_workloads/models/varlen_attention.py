"""Attention inside the documents of packed rows on GPUs, by flash attention's kernel for sequences of many lengths.

Enters: queries, keys and values of rows, where documents start, and a number that there are not more of. Leaves: what
each document's tokens see of their own document before them. It stands alone because it knows one operator of torch
and nothing of models: what it can take is told by tables, and what it gives is compared on the GPU at hand before any
model uses it. It was not run on a GPU yet; tests give the operator a CPU's implementation.

Shapes: B rows, T tokens, N heads, D width of a head, K at least as many as there are documents in all rows.
"""

import inspect
import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from plinth_workloads.models.output_difference import why_not

logger = logging.getLogger(__name__)

_LARGEST_WIDTH = 256
_WIDTH_STEP = 8
"""Widths of heads that flash attention takes; torch fills up others for `sdpa`, not here."""
_OLDEST_GPU = (8, 0)
"""Ampere: the oldest that flash attention is built for."""
_TOLERANCE = 0.02
"""Of the largest number: bf16 has 8 bits, and the kernel rounds probabilities as well as results."""

_TAKEN = frozenset(inspect.signature(varlen_attn).parameters)
HAS_OPERATOR = {"scale", "window_size"} <= _TAKEN
"""Whether torch's operator takes what is asked of it here: torch 2.10 had it without a scale."""
_GROUPED = "enable_gqa" in _TAKEN
"""Whether it takes fewer heads of keys than of queries."""


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of a model's attention.

    Attributes:
        queries: Heads of queries.
        keys: Heads of keys and values.
        width: Of each of them.
    """

    queries: int
    keys: int
    width: int


def kernel_fits(
    *, precision: str, capability: tuple[int, int] | None, width: int, dropout: bool, has_operator: bool
) -> bool:
    """Whether the kernel can be asked at all, from what is known before it is run.

    Args:
        precision: Of the run: bf16 or fp32.
        capability: The GPU's compute capability; None where it is not one of NVIDIA's.
        width: Of a head.
        dropout: Whether probabilities of attention are dropped out, which the operator does not do.
        has_operator: `HAS_OPERATOR`.
    """
    return (
        has_operator
        and precision == "bf16"
        and capability is not None
        and capability >= _OLDEST_GPU
        and _width_fits(width)
        and not dropout
    )


def _width_fits(width: int) -> bool:
    return width % _WIDTH_STEP == 0 and 0 < width <= _LARGEST_WIDTH


def own_gpu() -> tuple[int, int] | None:
    """The compute capability of this process's GPU; None where it has none of NVIDIA's."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability()


def kernel_takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether these tensors, as attention gets them after autocast, are for the kernel."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.dtype == key.dtype == value.dtype
        and query.shape[-1] == value.shape[-1]
        and _width_fits(query.shape[-1])
    )


def room_for(num_documents: int, num_tokens: int) -> int:
    """The number that is said of so many documents: the next power of two, so that compiled blocks see few of them.

    The kernel starts work for each of them and keeps 128 rows of gradients apart, so it is no number for the worst
    case, a document for each token: that would be 129 times the memory.
    """
    return min(num_tokens, 1 << max(0, num_documents - 1).bit_length())


def ends_of_documents(starts_BT: Tensor, room: int) -> Tensor:
    """Tokens before each document and after the last one, over all rows: int32, K + 1 numbers from 0 to B * T.

    Nothing is waited for: where there are fewer documents than K, the end is repeated, which says that the others are
    of no length. Flash attention's blocks return at once for those, forwards and backwards.

    Args:
        starts_BT: Not 0 where a document starts, and so at the first token of every row.
        room: K.
    """
    nth = (starts_BT != 0).flatten().cumsum(0)
    return torch.searchsorted(nth, torch.arange(1, room + 2, device=nth.device), out_int32=True)


def varlen_attention(
    query_BNTD: Tensor, key_BNTD: Tensor, value_BNTD: Tensor, starts_BT: Tensor, room: int, scale: float
) -> Tensor:
    """Causal attention inside each document, B x T x N x D.

    The backend is named: torch prefers cuDNN's where it can, which gives NaN for documents of no length before 9.25
    (https://github.com/NVIDIA/cudnn-frontend/issues/943).

    Args:
        query_BNTD: Queries, bf16 or fp16.
        key_BNTD: Keys, of as many heads or a part of them.
        value_BNTD: Values, of as many heads as keys.
        starts_BT: Not 0 where a document starts, and so at the first token of every row.
        room: K; with more documents than this the last ones would see each other.
        scale: Of the scores.
    """
    rows, heads, tokens, width = query_BNTD.shape
    grouped = heads != key_BNTD.shape[1]
    if grouped and not _GROUPED:
        groups = heads // key_BNTD.shape[1]
        key_BNTD, value_BNTD = (each.repeat_interleave(groups, 1) for each in (key_BNTD, value_BNTD))
        grouped = False
    query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in (query_BNTD, key_BNTD, value_BNTD))
    ends = ends_of_documents(starts_BT, room)
    options: dict[str, Any] = {"enable_gqa": True} if grouped else {}
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = varlen_attn(query, key, value, ends, ends, tokens, tokens, scale=scale, window_size=(-1, 0), **options)
    assert isinstance(out, Tensor)
    return out.view(rows, tokens, heads, width)


@cache
def kernel_is_right(heads: Heads, device: torch.device) -> bool:
    """Whether the kernel gives what masked attention gives, results and gradients, for heads like these.

    Asked once a process: documents of one token, of more than a block, of no length, and rows of several.
    """
    generator = torch.Generator(device).manual_seed(0)

    def random(num_heads: int) -> Tensor:
        shape = (2, num_heads, 320, heads.width)
        return torch.randn(shape, generator=generator, device=device).to(torch.bfloat16).requires_grad_()

    inputs = random(heads.queries), random(heads.keys), random(heads.keys)
    starts_BT = torch.zeros(2, 320, dtype=torch.uint8, device=device)
    starts_BT[0, [0, 1, 130]] = starts_BT[1, [0, 300]] = 1
    scale = heads.width**-0.5
    documents_BT = starts_BT.cumsum(1)
    mask_B1TT = (documents_BT[:, None, :, None] == documents_BT[:, None, None, :]).tril()
    weights = random(heads.queries).detach()
    query, key, value = (each.float() for each in inputs)
    masked = F.scaled_dot_product_attention(query, key, value, mask_B1TT, scale=scale, enable_gqa=True)
    expected = (masked, *torch.autograd.grad((masked * weights).sum(), inputs))

    def by_kernel() -> tuple[Tensor, ...]:
        ours = varlen_attention(*inputs, starts_BT, room_for(5, 640), scale).transpose(1, 2)
        return ours, *torch.autograd.grad((ours * weights).sum(), inputs)

    reason = why_not(by_kernel, expected, tolerance=_TOLERANCE)
    if reason is not None:
        logger.warning("documents are attended with a dense mask, flash attention cannot be used: %s", reason)
    return reason is None
