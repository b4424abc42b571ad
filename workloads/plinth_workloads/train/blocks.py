"""The repeated blocks of a model: how they attend, what they keep for the backward pass, and their compilation.

Enters: a model whose blocks are whole; leaves: the same model, the `forward` of its blocks replaced. Modules are not
wrapped: names of weights stay as they are, hooks of FSDP2 stay outside of what is computed again or compiled. Blocks
are alike, so that one of them is compiled for all.
"""

import os
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from plinth_api.run import TrainRun
from plinth_workloads.models.attention import attend_within_documents
from plinth_workloads.train.parallel import transformer_blocks

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

KEPT = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.plinth.document_attention.default,
        torch.ops.torch_attn._varlen_attn.default,
    }
)
"""Operations whose results selective checkpointing keeps: those that take the most time for each byte they make."""


def prepare_blocks(model: nn.Module, run: TrainRun, *, same_width: bool) -> None:
    """Let the blocks keep and compute what the run document says.

    Args:
        model: On the CPU, before it is sharded and after everything that calls it only to look at it.
        run: The run document. What is compiled is kept in its work folder, where the next attempt finds it, unless the
            variable of torch's compiler names another place.
        same_width: Whether all rows are of one width, as those that documents are cut for.
    """
    attend_within_documents(model, on_gpu=bool(run.workers.gpus), precision=run.training.precision)
    blocks = transformer_blocks(model)
    mode = run.training.activation_checkpointing
    if mode != "none":
        options = {"context_fn": _keeping_products} if mode == "selective" else {}
        for block in blocks:
            block.forward = _recomputed(block, block.forward, options)
    if run.training.compile:
        # torch writes its own default there when it is imported.
        if os.environ.get(_CACHE_VARIABLE) in (None, default_cache_dir()):
            os.environ[_CACHE_VARIABLE] = str(Path(run.work_dir) / "cache" / "compiled")
        for block in blocks:
            # Rows of mixed length would each be compiled anew; those of one width are faster with their sizes known.
            block.forward = torch.compile(block.forward, dynamic=None if same_width else True)


def _keeping_products() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def _recomputed(block: nn.Module, forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """`forward`, computed again in the backward pass where the block trains."""

    @wraps(forward)
    def recomputed(*arguments: Any, **keywords: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*arguments, **keywords)
        return checkpoint(partial(forward, **keywords), *arguments, use_reentrant=False, **options)

    return recomputed
