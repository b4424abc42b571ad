"""Cross entropy of a language model's head, some tokens at a time: logits of a whole batch never exist at once.

Enters: the hidden states that reach the head, and the labels. Leaves: the loss summed over the labels. It stands alone
because every objective that predicts tokens may use it, and because what lets it be used is found here: a model whose
forward pass does to its logits what is not known here is left to the plain way.

Shapes: B rows, T tokens, N labels, H hidden, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from plinth_workloads.data.loader import IGNORED
from plinth_workloads.models.modes import in_evaluation
from plinth_workloads.objectives.liger_loss import liger_cross_entropy

CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**27}
"""Most logits at once: 64 MiB in fp32 on a CPU, where larger ones leave the caches; larger products keep a GPU busy."""

_PROBED_RANGE = 80.0
_EXACT_PROBABILITY = 1e-30
"""Of a token: smaller ones come near to where float32 has fewer digits, or none."""


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model does to its logits after the head: a scale, then a soft cap, `cap * tanh(logits / cap)`."""

    scale: float = 1.0
    cap: float | None = None

    def apply_(self, logits: Tensor) -> Tensor:
        """Transform float32 logits in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits

    def __call__(self, logits: Tensor) -> Tensor:
        """The transformed logits."""
        scaled = logits * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)


@dataclass(slots=True)
class _HeadCalls:
    """What reached the head while it was replaced."""

    hidden: list[Tensor] = field(default_factory=list)


@contextmanager
def _replaced_head(head: nn.Module, logits_V: Tensor) -> Iterator[_HeadCalls]:
    """Let the head remember what it gets, and return the same logits at every position."""
    calls = _HeadCalls()

    def remember(hidden_BTH: Tensor) -> Tensor:
        calls.hidden.append(hidden_BTH)
        return logits_V.expand(*hidden_BTH.shape[:-1], -1)

    own = vars(head).get("forward")
    head.forward = remember
    try:
        yield calls
    finally:
        del head.forward
        if own is not None:
            head.forward = own


def hidden_before_head(model: Any, **inputs: Any) -> Tensor:
    """What reaches the head of `model` when it is called with `inputs`; the head itself does not compute.

    The model is called from outside, so that whatever wraps it, an adapter or a prompt, takes part.
    """
    head = model.get_output_embeddings()
    with _replaced_head(head, inputs["input_ids"].new_zeros(1, dtype=torch.float32)) as calls:
        model(**inputs)
    (hidden_BTH,) = calls.hidden
    return hidden_BTH


def logit_transform(model: Any) -> LogitTransform | None:
    """What the model does to its logits, proved by logits put in the place of the head's; None where it is not known.

    Args:
        model: A causal language model, whole and on one device; it is left in the mode that it was in.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None or getattr(head, "weight", None) is None:
        return None
    weight_VH = head.weight
    wide_V = torch.linspace(-_PROBED_RANGE, _PROBED_RANGE, weight_VH.shape[0], device=weight_VH.device)
    ids_BT = torch.arange(4, device=weight_VH.device)[None] % weight_VH.shape[0]
    try:
        with in_evaluation(model), _replaced_head(head, wide_V) as calls:
            logits_BTV = model(
                input_ids=ids_BT, position_ids=torch.arange(4, device=ids_BT.device)[None], use_cache=False
            ).logits
    except (TypeError, RuntimeError, AttributeError):
        return None
    if len(calls.hidden) != 1 or calls.hidden[0].shape[:-1] != logits_BTV.shape[:-1]:
        return None
    known = _known_transform(model.config.get_text_config())
    expected_BTV = known(wide_V).expand_as(logits_BTV)
    return known if torch.allclose(logits_BTV.float(), expected_BTV, rtol=1e-4, atol=1e-4) else None


def _known_transform(config: Any) -> LogitTransform:
    """The transform that a configuration names, in the words of Cohere, Granite and Gemma."""
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return LogitTransform(scale / divisor, getattr(config, "final_logit_softcapping", None))


def chunked_cross_entropy(
    hidden_BTH: Tensor,
    head: nn.Module,
    labels_BT: Tensor,
    transform: LogitTransform,
    *,
    chunk_logits: int | None = None,
) -> Tensor:
    """Cross entropy summed over the labels that are not IGNORED.

    A linear head's gradients are computed beside the loss, so nothing is computed twice, on GPUs by liger-kernel where
    that serves; any other head, one with an adapter for example, is called again in the backward pass.

    Args:
        hidden_BTH: What reaches the head; positions before the last T, those of a prompt, predict nothing.
        head: The model's output embeddings.
        labels_BT: Token ids, or IGNORED.
        transform: What the model does to its logits.
        chunk_logits: Most logits at once; `CHUNK_LOGITS` of the device when left out.
    """
    hidden_NH = hidden_BTH[:, -labels_BT.shape[1] :].flatten(0, 1)
    labels_N = labels_BT.flatten()
    if _answers_at_once(hidden_NH.device):
        (learned_N,) = torch.nonzero(labels_N != IGNORED, as_tuple=True)
        if len(learned_N) < len(labels_N):
            hidden_NH, labels_N = hidden_NH.index_select(0, learned_N), labels_N[learned_N]
    limit = chunk_logits or CHUNK_LOGITS.get(hidden_NH.device.type, CHUNK_LOGITS["cpu"])
    size = max(1, limit // _vocabulary(head))
    if type(head) is nn.Linear:
        fused = liger_cross_entropy(hidden_NH, head, labels_N, limit) if transform == LogitTransform() else None
        if fused is not None:
            return fused
        part = _part_of(head.weight)
        return _LinearCrossEntropy.apply(
            hidden_NH, _own(head.weight), _own(head.bias), labels_N, transform, part, size, torch.is_grad_enabled()
        )
    total = torch.zeros((), device=hidden_NH.device)
    for start in range(0, max(1, len(labels_N)), size):
        chunk = slice(start, start + size)
        total = total + checkpoint(
            _cross_entropy, hidden_NH[chunk], head, labels_N[chunk], transform, use_reentrant=False
        )
    return total


def _answers_at_once(device: torch.device) -> bool:
    """Whether a step may ask for a number: a GPU would have to be waited for."""
    return device.type == "cpu"


def _vocabulary(head: Any) -> int:
    """The most tokens whose logits one process computes."""
    whole = int(head.weight.shape[0])
    return -(-whole // head.weight.device_mesh.size()) if isinstance(head.weight, DTensor) else whole


def _own(weight: Tensor | None) -> Tensor | None:
    """The rows of the head that this process has."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


@dataclass(frozen=True, slots=True)
class _VocabularyPart:
    """The tokens whose rows of the head this process has, where tensor parallelism has split it.

    Attributes:
        group: The processes that have the others.
        first: Id of its first token.
    """

    group: dist.ProcessGroup
    first: int

    def log_sum(self, log_sum_N1: Tensor) -> Tensor:
        """The log sum exp over the vocabulary, from that over the own tokens."""
        largest_N1 = log_sum_N1.clone()
        dist.all_reduce(largest_N1, dist.ReduceOp.MAX, group=self.group)
        return largest_N1 + self.sum((log_sum_N1 - largest_N1).exp()).log()

    def sum(self, value: Tensor) -> Tensor:
        """A tensor summed over the processes, in place."""
        dist.all_reduce(value, group=self.group)
        return value


def _part_of(weight: Tensor) -> _VocabularyPart | None:
    if not isinstance(weight, DTensor):
        return None
    mesh = weight.device_mesh
    return _VocabularyPart(mesh.get_group(), -(-weight.shape[0] // mesh.size()) * mesh.get_local_rank())


def _cross_entropy(hidden_NH: Tensor, head: nn.Module, labels_N: Tensor, transform: LogitTransform) -> Tensor:
    logits_NV = transform(head(hidden_NH).float())
    return F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORED, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    """A linear head and its cross entropy, with their gradients computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        transform: LogitTransform,
        part: _VocabularyPart | None,
        size: int,
        with_gradients: bool,
    ) -> Tensor:
        kind = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VH.dtype
        needed = [with_gradients and wanted for wanted in ctx.needs_input_grad[:3]]
        with torch.autocast(kind, enabled=False):
            chunks = _Chunks(
                hidden_NH.to(dtype), weight_VH.to(dtype), bias_V, transform, part, min(size, len(labels_N))
            )
            grads = [
                torch.zeros_like(hidden_NH) if needed[0] else None,
                # Chunks are summed in float32, as a product over all tokens is.
                torch.zeros_like(weight_VH, dtype=torch.float32) if needed[1] else None,
                torch.zeros_like(bias_V, dtype=torch.float32) if needed[2] and bias_V is not None else None,
            ]
            total = torch.zeros((), device=hidden_NH.device)
            for start in range(0, len(labels_N), size):
                total += chunks.loss(slice(start, start + size), labels_N, grads)
            if part is not None and grads[0] is not None:
                part.sum(grads[0])
        ctx.grads = [
            None if grad is None else grad.to(of.dtype)  # type: ignore[union-attr]
            for grad, of in zip(grads, (hidden_NH, weight_VH, bias_V), strict=True)
        ]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        scaled = [None if kept is None else kept.mul_(grad.to(kept.dtype)) for kept in ctx.grads]
        # They are scaled in place, so a second pass would scale them twice.
        del ctx.grads
        return (*scaled, None, None, None, None, None)


class _Chunks:
    """Buffers that the chunks share: memory that is given back is zeroed by the kernel each time it is asked for."""

    def __init__(
        self,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        transform: LogitTransform,
        part: _VocabularyPart | None,
        size: int,
    ) -> None:
        self._hidden_NH, self._weight_VH, self._bias_V = hidden_NH, weight_VH, bias_V
        self._transform, self._part = transform, part
        self._at_once = _answers_at_once(hidden_NH.device)
        shape = (size, weight_VH.shape[0])
        self._logits = torch.empty(shape, dtype=torch.float32, device=hidden_NH.device)
        self._gradient = torch.empty_like(self._logits)
        same = hidden_NH.dtype == torch.float32
        self._product = self._logits if same else torch.empty(shape, dtype=hidden_NH.dtype, device=hidden_NH.device)

    def loss(self, part: slice, labels_N: Tensor, grads: list[Tensor | None]) -> Tensor:
        """The loss of some tokens; their gradients are written into or added to `grads`."""
        hidden_NH, labels_N1 = self._hidden_NH[part], labels_N[part, None]
        count = len(labels_N1)
        logits_NV, gradient_NV = self._logits[:count], self._gradient[:count]
        product_NV = torch.mm(hidden_NH, self._weight_VH.t(), out=self._product[:count])
        if product_NV.dtype != torch.float32:
            logits_NV.copy_(product_NV)
        if self._bias_V is not None:
            logits_NV += self._bias_V
        self._transform.apply_(logits_NV)
        targets_N1, present_N1 = self._targets(labels_N1)
        torch.softmax(logits_NV, -1, out=gradient_NV)
        log_sum_N1 = self._log_sum(logits_NV, gradient_NV, targets_N1)
        of_targets_N1 = logits_NV.gather(1, targets_N1) * present_N1
        if self._part is not None:
            own_N1, log_sum_N1 = log_sum_N1, self._part.log_sum(log_sum_N1)
            gradient_NV.mul_((own_N1 - log_sum_N1).exp())
            self._part.sum(of_targets_N1)
        losses_N1 = log_sum_N1 - of_targets_N1
        # Labels that are not to be learned have been left out where that is known at once.
        learned_N1 = None if self._at_once else labels_N1 != IGNORED
        if learned_N1 is not None:
            losses_N1.mul_(learned_N1)
        if any(grad is not None for grad in grads):
            gradient_NV.scatter_add_(1, targets_N1, -present_N1)
            if learned_N1 is not None:
                gradient_NV.mul_(learned_N1)
            self._through_transform(logits_NV, gradient_NV)
            self._add_gradients(part, hidden_NH, gradient_NV, grads)
        return losses_N1.sum()

    def _log_sum(self, logits_NV: Tensor, probabilities_NV: Tensor, targets_N1: Tensor) -> Tensor:
        """The log sum exp of logits, from one of them and its probability: N x 1.

        That of the target costs nothing to find, but may be too small for a logarithm. The likeliest token's never is,
        which costs a pass over all logits; on a GPU that is cheaper than waiting for the answer.
        """
        if self._at_once:
            of_targets_N1 = probabilities_NV.gather(1, targets_N1)
            if (of_targets_N1 > _EXACT_PROBABILITY).all():
                return logits_NV.gather(1, targets_N1) - of_targets_N1.log()
        top_N1, likeliest_N1 = probabilities_NV.max(-1, keepdim=True)
        return logits_NV.gather(1, likeliest_N1) - top_N1.log()

    def _targets(self, labels_N1: Tensor) -> tuple[Tensor, Tensor]:
        """The logit of each label among those of this process, and 1.0 where it has it."""
        first = self._part.first if self._part is not None else 0
        last = self._logits.shape[1] - 1
        targets_N1 = (labels_N1 - first).clamp(0, last)
        return targets_N1, (targets_N1 + first == labels_N1).to(self._logits.dtype)

    def _through_transform(self, logits_NV: Tensor, gradient_NV: Tensor) -> None:
        """The gradient of the transformed logits to that of the head's; uses the logits up."""
        if self._transform.cap is not None:
            gradient_NV.mul_(logits_NV.div_(self._transform.cap).square_().neg_().add_(1.0))
        if self._transform.scale != 1.0:
            gradient_NV.mul_(self._transform.scale)

    def _add_gradients(self, part: slice, hidden_NH: Tensor, gradient_NV: Tensor, grads: list[Tensor | None]) -> None:
        of_hidden, of_weight, of_bias = grads
        product_NV = gradient_NV
        if self._product.dtype != torch.float32:
            product_NV = self._product[: len(hidden_NH)].copy_(gradient_NV)
        if of_hidden is not None:
            of_hidden[part] = product_NV @ self._weight_VH
        if of_weight is not None and self._product.dtype == torch.float32:
            of_weight.addmm_(product_NV.t(), hidden_NH)
        elif of_weight is not None:
            of_weight += product_NV.t() @ hidden_NH
        if of_bias is not None:
            of_bias += gradient_NV.sum(0)
