"""Optimizers and the learning rate over time."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from plinth_api.run import RunTraining

LEAST_ELEMENTS = 4096
"""Of a weight whose states adamw8bit quantises; smaller ones, whose states are nothing, keep them in 32 bits."""

BYTES_PER_STATE = 1 + 4 / 256
"""Of an element whose states are quantised: a byte, and for each 256 of them a scale in 32 bits."""

_EMBEDDING_MODULES = (nn.Embedding,)


def build_optimizers(model: nn.Module, training: RunTraining) -> list[torch.optim.Optimizer]:
    """The optimizers of a model's trainable weights.

    Matrices are decayed; biases, norms and other vectors are not. With muon, hidden matrices go to Muon
    (https://kellerjordan.github.io/posts/muon/) with the step size matched to AdamW's, the rest to AdamW. With
    adamw8bit AdamW's two states are quantised (https://arxiv.org/abs/2110.02861).
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hidden = hidden_matrices(model)
    if training.optimizer == "adamw8bit":
        return [_adamw_8bit(trainable, training)]
    if training.optimizer == "adamw" or not hidden:
        return [_adamw(trainable, training)]
    taken = {id(parameter) for parameter in hidden}
    muon = torch.optim.Muon(
        hidden, lr=training.learning_rate, weight_decay=training.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, _adamw([parameter for parameter in trainable if id(parameter) not in taken], training)]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable matrices that are neither embeddings nor the head."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, _EMBEDDING_MODULES)}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if output is not None:
        embeddings.add(id(output.weight))
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in embeddings]


def _adamw(parameters: Sequence[nn.Parameter], training: RunTraining) -> torch.optim.AdamW:
    return torch.optim.AdamW(_groups(parameters, training), **_of_adam(training), fused=True)


def _adamw_8bit(parameters: Sequence[nn.Parameter], training: RunTraining) -> torch.optim.Optimizer:
    # bitsandbytes takes long to import, and few runs need it.
    from plinth_workloads.train.adamw_8bit import AdamW8bit

    return AdamW8bit(_groups(parameters, training), **_of_adam(training), min_8bit_size=LEAST_ELEMENTS)


def _groups(parameters: Sequence[nn.Parameter], training: RunTraining) -> list[dict[str, Any]]:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _of_adam(training: RunTraining) -> dict[str, Any]:
    return {"lr": training.learning_rate, "betas": (training.beta1, training.beta2), "eps": training.epsilon}


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], lr: float) -> None:
    """Let all optimizers use `lr` in their next step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def learning_rate_at(step: int, num_steps: int, training: RunTraining) -> float:
    """The learning rate of optimizer step `step`, counted from 1 to `num_steps`.

    Linear warm-up from zero, then the schedule; its last step has `final_learning_rate_fraction` of the peak
    (wsd: https://arxiv.org/abs/2404.06395).
    """
    peak, final = training.learning_rate, training.final_learning_rate_fraction
    if step <= training.warmup_steps:
        return peak * step / training.warmup_steps
    if training.schedule == "constant":
        return peak
    start = training.warmup_steps
    if training.schedule == "wsd":
        start = max(start, num_steps - (training.decay_steps or max(1, num_steps // 5)))
    if step <= start:
        return peak
    progress = (step - start) / max(1, num_steps - start)
    if training.schedule == "cosine":
        return peak * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)
    return peak * (1 - (1 - final) * progress)
