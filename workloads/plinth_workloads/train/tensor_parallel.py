"""Matrices of each layer split over neighbouring workers (tensor parallel, https://arxiv.org/abs/1909.08053).

Enters: a whole causal language model, the same in all workers. Leaves: the same model, every weight a DTensor over the
mesh of the workers that hold a layer together. Which matrix is split by rows and which by columns is in transformers'
own plan of the architecture; the head and the embeddings are split by tokens, and what the plan leaves out is in every
worker. That the split model computes what the whole one did is shown, not believed: some architectures have plans that
their own attention does not follow.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from plinth_workloads.errors import UserError
from plinth_workloads.models.modes import in_evaluation
from plinth_workloads.objectives.chunked_loss import hidden_before_head, logit_transform

_INSTEAD = "leave it out and raise spec.compute.parallelism.shard"
_HEADS = ("num_attention_heads", "num_key_value_heads")
_SPLIT_ROWS, _SPLIT_COLUMNS, _OWN_HEADS = "colwise", "rowwise", "replicated_with_grad_allreduce"
_HEAD_DIMENSION = 2
"""Where norms of queries and keys have the heads: batch, token, head, width."""


def check_split(model: Any, tensor: int) -> None:
    """Refuse a model whose layers cannot be split over `tensor` workers.

    Raises:
        UserError: InvalidSpec.
    """
    config = model.config.get_text_config()
    plan = _plan(model)
    if not plan:
        raise _refusal(f"transformers has no plan to split {config.model_type}; {_INSTEAD}")
    unknown = sorted(set(plan.values()) - {_SPLIT_ROWS, _SPLIT_COLUMNS, _OWN_HEADS})
    if unknown or logit_transform(model) is None:
        what = f"{unknown[0]} layers" if unknown else "its head"
        raise _refusal(f"{config.model_type} cannot be split, for {what}; {_INSTEAD}")
    for name in _HEADS:
        heads = getattr(config, name, None)
        if isinstance(heads, int) and heads % tensor:
            raise _refusal(f"{tensor} does not divide the model's {name} = {heads}")
    for name, module in model.base_model.named_modules():
        style = _style(plan, name)
        if style in (_SPLIT_ROWS, _SPLIT_COLUMNS):
            size = module.weight.shape[0 if style == _SPLIT_ROWS else 1]
            if size % tensor:
                raise _refusal(f"{tensor} does not divide the {size} features of {name}")


def split_layers(model: Any, mesh: DeviceMesh) -> None:
    """Split a model's layers in place.

    Args:
        model: Whole, on the device, equal in all workers; `check_split` has let it pass.
        mesh: The workers that hold a layer together, in one dimension.

    Raises:
        UserError: InvalidSpec where the split model computes something else.
    """
    # It tells of every collective that is not merged with another one.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    whole = _probe(model)
    _split(model, mesh)
    try:
        same = torch.allclose(_probe(model), whole, rtol=1e-3, atol=1e-3)
    except (RuntimeError, TypeError, ValueError):
        same = False
    if not same:
        name = model.config.model_type
        raise _refusal(f"split by transformers' plan, {name} computes other numbers than whole; {_INSTEAD}")


def _refusal(text: str) -> UserError:
    return UserError("InvalidSpec", f"spec.compute.parallelism.tensor: {text}")


def _plan(model: Any) -> Mapping[str, str]:
    return getattr(model.base_model.config, "base_model_tp_plan", None) or {}


def _style(plan: Mapping[str, str], name: str) -> str | None:
    """What the plan, whose `*` is the number of a layer, says of a module."""
    return plan.get(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name))


def _split(model: Any, mesh: DeviceMesh) -> None:
    plan, embeddings, head = _plan(model), model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embeddings.weight
    styles = {module: _style(plan, name) for name, module in model.base_model.named_modules()}
    for module in list(model.modules()):
        if next(module.parameters(recurse=False), None) is None:
            continue
        if module is head:
            # Its own forward pass is never called: the loss takes the weight.
            distribute_module(head, mesh, _split_tokens)
        elif module is embeddings:
            parallelize_module(module, mesh, RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate()))
            module.register_forward_hook(_arrived)
        else:
            parallelize_module(module, mesh, _parallel_style(styles.get(module)))
    if tied:
        head.weight = embeddings.weight


def _split_tokens(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
    for key, weight in list(module.named_parameters(recurse=False)):
        split = distribute_tensor(weight.detach(), mesh, [Shard(0)])
        module.register_parameter(key, nn.Parameter(split, requires_grad=weight.requires_grad))


def _parallel_style(style: str | None) -> ParallelStyle:
    if style == _SPLIT_ROWS:
        return ColwiseParallel()
    if style == _SPLIT_COLUMNS:
        return RowwiseParallel()
    return _InEveryWorker(Shard(_HEAD_DIMENSION) if style == _OWN_HEADS else Replicate())


class _InEveryWorker(ParallelStyle):
    """A module that every worker has whole.

    Args:
        enters: How its input is spread. Where each worker has heads of its own, gradients are summed over them.
    """

    def __init__(self, enters: Placement) -> None:
        super().__init__()
        self._enters = enters

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, None, self._take, _leave)  # type: ignore[arg-type]

    def _take(self, module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
        return tuple(
            DTensor.from_local(value, mesh, (self._enters,), run_check=False) if isinstance(value, Tensor) else value
            for value in inputs
        )


def _leave(module: nn.Module, output: Any, mesh: DeviceMesh) -> Any:
    return output.to_local() if isinstance(output, DTensor) else output


def _arrived(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """A tensor, and not one that is still on its way: a compiled block would send its gradient nowhere."""
    return output.clone()


def _probe(model: Any) -> Tensor:
    """What reaches the head for a few tokens."""
    device = next(model.parameters()).device
    ids_BT = torch.arange(8, device=device)[None] % model.config.get_text_config().vocab_size
    # Blocks are not compiled for so few tokens.
    with in_evaluation(model), torch.compiler.set_stance("force_eager"):
        return hidden_before_head(
            model, input_ids=ids_BT, position_ids=torch.arange(8, device=device)[None], use_cache=False
        )
