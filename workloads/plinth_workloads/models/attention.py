"""Attention inside the documents of packed rows: work goes with the sum of the squares of their lengths.

transformers' own way masks the scores of whole rows, B x T x T of them, on CPUs and GPUs alike. Here its mask is told
where documents start, which is all that a causal mask of documents says, and each document is attended by itself: on
CPUs by an operation of this module, on GPUs by `varlen_attention`. What this cannot express (windows, dropout, caches)
takes transformers' way.

Shapes: B rows, T tokens, N heads, D width of a head, K at least as many as there are documents in all rows.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from plinth_workloads.models.modes import in_evaluation
from plinth_workloads.models.varlen_attention import (
    HAS_OPERATOR,
    Heads,
    kernel_fits,
    kernel_is_right,
    kernel_takes,
    own_gpu,
    room_for,
    varlen_attention,
)

IMPLEMENTATION = "plinth_documents"
GPU_IMPLEMENTATION = "plinth_varlen_documents"
ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
"""How configurations spell dropout of attention."""
_STARTS = torch.uint8
"""The type by which starts of documents are told from a mask of scores, which is bool or float."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def attend_within_documents(model: Any, *, on_gpu: bool = False, precision: str = "fp32") -> bool:
    """Let a model attend document by document, if that gives the numbers that it gives now.

    Args:
        model: A transformers model, or a peft model around one, in any mode; on the CPU, where it is tried.
        on_gpu: Whether it will train on this process's GPU. The kernel itself is then tried there.
        precision: Of the run: bf16 or fp32.

    Returns:
        False where the model stays as it was: on a GPU already, with another attention than `sdpa`, with other
        numbers, or for a GPU whose kernel does not take its heads.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if next(model.parameters()).device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return False
    if on_gpu and not _kernel_serves(model.config, precision):
        return False
    implementation, mask = (
        (GPU_IMPLEMENTATION, counted_starts_of_documents) if on_gpu else (IMPLEMENTATION, starts_of_documents)
    )
    AttentionInterface.register(implementation, document_attention_forward)
    AttentionMaskInterface.register(implementation, mask)
    try:
        with in_evaluation(model):
            before = _logits_of_two_documents(model)
            model.set_attn_implementation(implementation)
            same = torch.allclose(_logits_of_two_documents(model), before, rtol=1e-4, atol=1e-4)
    except (AttributeError, TypeError, ValueError, RuntimeError, KeyError):
        same = False
    if not same:
        model.set_attn_implementation("sdpa")
    return same


def _kernel_serves(config: Any, precision: str) -> bool:
    config = getattr(config, "get_text_config", lambda: config)()
    queries, hidden = (getattr(config, name, None) for name in ("num_attention_heads", "hidden_size"))
    if not isinstance(queries, int) or not isinstance(hidden, int):
        return False
    width = getattr(config, "head_dim", None) or hidden // queries
    fits = kernel_fits(
        precision=precision,
        capability=own_gpu(),
        width=width,
        dropout=any(getattr(config, name, 0) for name in ATTENTION_DROPOUTS),
        has_operator=HAS_OPERATOR,
    )
    keys = getattr(config, "num_key_value_heads", None) or queries
    return fits and kernel_is_right(Heads(queries, keys, width), torch.device("cuda", torch.cuda.current_device()))


def _logits_of_two_documents(model: Any) -> Tensor:
    positions_BT = torch.cat([torch.arange(5), torch.arange(7)])[None].repeat(2, 1)
    positions_BT[1] = torch.arange(12)
    ids_BT = torch.arange(1, 25).view(2, 12)
    output: Tensor = model(input_ids=ids_BT, position_ids=positions_BT, attention_mask=None, use_cache=False).logits
    return output


def starts_of_documents(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    *,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **others: Any,
) -> Tensor | None:
    """The mask of a batch, as transformers asks for it: B x 1 x 1 x T of type uint8, or what `sdpa` takes.

    It is 1 where a document starts, at each token that does not see the one before it, and `sdpa`'s where starts do
    not say everything.
    """
    from transformers.masking_utils import sdpa_mask

    is_windowed = local_size is not None and local_size < kv_length
    whole_rows = attention_mask is None and q_length == kv_length and q_offset == kv_offset == 0
    if use_vmap or is_windowed or not whole_rows or q_length < 2:
        mask: Tensor | None = sdpa_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            local_size,
            use_vmap=use_vmap,
            device=device,
            **others,
        )
        return mask
    rows_B1 = torch.arange(batch_size, device=device)[:, None]
    tokens_1T = torch.arange(1, q_length, device=device)[None]
    seen = mask_function(rows_B1, torch.zeros_like(rows_B1), tokens_1T, tokens_1T - 1)
    starts_BT = torch.ones(batch_size, q_length, dtype=_STARTS, device=device)
    starts_BT[:, 1:] = ~seen
    return starts_BT[:, None, None]


def counted_starts_of_documents(batch_size: int, q_length: int, *arguments: Any, **others: Any) -> Tensor | None:
    """The mask of a batch on a GPU: `starts_of_documents` as B x 1 x K x T, or what `sdpa` takes.

    K is said by the shape, so that no layer waits for the GPU to know it. Counting waits once a pass, where
    transformers has waited the moment before to know whether there are several documents at all; where there are not,
    rows have no mask.
    """
    from transformers.masking_utils import sdpa_mask

    if others.get("allow_is_causal_skip"):
        whole: Tensor | None = sdpa_mask(batch_size, q_length, *arguments, **others)
        return whole
    mask = starts_of_documents(batch_size, q_length, *arguments, **others)
    if mask is None or mask.dtype != _STARTS:
        return mask
    return mask.expand(-1, -1, room_for(int(mask.sum()), batch_size * q_length), -1)


def document_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: B x N x T x D each, to B x T x N x D."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if attention_mask is None or attention_mask.dtype != _STARTS:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    if dropout or others.get("softcap") is not None or others.get("position_bias") is not None:
        scores_mask = dense_mask(attention_mask)
        return sdpa_attention_forward(module, query, key, value, scores_mask, dropout, scaling, **others)
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    starts_BT = attention_mask[:, 0, 0]
    if kernel_takes(query, key, value):
        return varlen_attention(query, key, value, starts_BT, attention_mask.shape[2], scale), None
    if kind != "cpu":
        scores_mask = dense_mask(attention_mask)
        return sdpa_attention_forward(module, query, key, value, scores_mask, dropout, scaling, **others)
    groups = query.shape[1] // key.shape[1]
    out_BTND, _ = document_attention(query, repeat_kv(key, groups), repeat_kv(value, groups), starts_BT, scale)
    return out_BTND, None


def dense_mask(starts_B1KT: Tensor) -> Tensor:
    """The same mask for every pair of tokens: bool, B x 1 x T x T."""
    documents_B1T = starts_B1KT[:, :, 0].to(torch.int64).cumsum(-1)
    same_B1TT = documents_B1T[..., None] == documents_B1T[..., None, :]
    return same_B1TT.tril()


def documents(starts_BT: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and tokens of each document; all rows at once where each of them is one document."""
    num_rows, width = starts_BT.shape
    rows, tokens = (found.tolist() for found in torch.nonzero(starts_BT, as_tuple=True))
    if len(rows) == num_rows:
        yield slice(0, num_rows), slice(0, width)
        return
    stops = [*tokens[1:], 0]
    for row, start, stop in zip(rows, tokens, stops, strict=True):
        yield slice(row, row + 1), slice(start, stop or width)


@torch.library.custom_op("plinth::document_attention", mutates_args=())
def document_attention(
    query_BNTD: Tensor, key_BNTD: Tensor, value_BNTD: Tensor, starts_BT: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention inside each document.

    An operation of its own, so that a compiled block has one step for it whatever the documents, and so that gradients
    are written into place: autograd would make a tensor of the whole batch for each document.

    Args:
        query_BNTD: Queries.
        key_BNTD: Keys, as many heads.
        value_BNTD: Values, as many heads.
        starts_BT: Not 0 where a document starts, and so at the first token of every row.
        scale: Of the scores.

    Returns:
        B x T x N x D, and the log of the scores' sum, B x T x N in float32.
    """
    rows, heads, tokens, width = query_BNTD.shape
    out_BTND = query_BNTD.new_empty(rows, tokens, heads, width)
    sums_BTN = query_BNTD.new_empty(rows, tokens, heads, dtype=torch.float32)
    for row, part in documents(starts_BT):
        inputs = (tensor[row, :, part] for tensor in (query_BNTD, key_BNTD, value_BNTD))
        out_BNTD, sums_BNT = _flash(*inputs, 0.0, True, attn_mask=None, scale=scale)
        out_BTND[row, part] = out_BNTD.transpose(1, 2)
        sums_BTN[row, part] = sums_BNT.transpose(1, 2)
    return out_BTND, sums_BTN


@document_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    rows, heads, tokens, width = query.shape
    return query.new_empty(rows, tokens, heads, width), query.new_empty(rows, tokens, heads, dtype=torch.float32)


@torch.library.custom_op("plinth::document_attention_backward", mutates_args=())
def _document_attention_backward(
    grad_BTND: Tensor,
    query_BNTD: Tensor,
    key_BNTD: Tensor,
    value_BNTD: Tensor,
    out_BTND: Tensor,
    sums_BTN: Tensor,
    starts_BT: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (query_BNTD, key_BNTD, value_BNTD)
    grads = tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs)
    for row, part in documents(starts_BT):
        found = _flash_backward(
            grad_BTND[row, part].transpose(1, 2),
            *(tensor[row, :, part] for tensor in inputs),
            out_BTND[row, part].transpose(1, 2),
            sums_BTN[row, part].transpose(1, 2),
            0.0,
            True,
            attn_mask=None,
            scale=scale,
        )
        for whole, gradient in zip(grads, found, strict=True):
            whole[row, :, part] = gradient
    return grads[0], grads[1], grads[2]


@_document_attention_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, starts: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    made = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value)]
    return made[0], made[1], made[2]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, starts, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, starts)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_BTND: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_BTND is None:
        return None, None, None, None, None
    *saved, starts = ctx.saved_tensors
    return *_document_attention_backward(grad_BTND, *saved, starts, ctx.scale), None, None


document_attention.register_autograd(_backward, setup_context=_keep_for_backward)
