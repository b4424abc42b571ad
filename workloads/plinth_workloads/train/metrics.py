"""What a training step is measured by: speed, memory, and how much of the hardware's peak is used."""

import resource
import sys
from typing import Any

import torch
from torch import nn

PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}
"""Dense bf16 peak by a part of the device's name, from NVIDIA's data sheets; longer names come first."""


def flops_per_token(model: nn.Module, config: Any, sequence_length: int) -> float:
    """Floating point operations of forward and backward for one token.

    6 for each weight that multiplies (embeddings that are only looked up do not), and 12 x layers x hidden x length for
    attention (PaLM, appendix B: https://arxiv.org/abs/2204.02311); frozen weights have no weight gradient and count 4.
    """
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if output is not None:
        looked_up.discard(id(output.weight))
    multiplied = sum((6 if p.requires_grad else 4) * p.numel() for p in model.parameters() if id(p) not in looked_up)
    layers = getattr(config, "num_hidden_layers", 0)
    hidden = getattr(config, "hidden_size", 0)
    return float(multiplied + 12 * layers * hidden * sequence_length)


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOP/s, None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def memory_bytes(device: torch.device) -> int:
    """The most memory this process has held: on the GPU, or in the machine where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
