"""Weights in 4 bits, by bitsandbytes: what transformers is told to load them so, and how many elements they stand for.

Linear layers of the repeated blocks are stored as NF4 with quantised constants (QLoRA,
https://arxiv.org/abs/2305.14314) and cast back for each product; embeddings, norms and all heads stay as they are. It
works on GPUs and on CPUs.
"""

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from plinth_workloads.errors import UserError

# It asks for kernels that would be downloaded from a hub as code; without them it warns whoever imports peft.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

BYTES_PER_WEIGHT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Two weights a byte, for each 64 of them a scale in 8 bits, and for each 256 of these one in 32."""


def four_bit_config(skeleton: nn.Module, compute_dtype: torch.dtype) -> Any:
    """Transformers' configuration.

    Args:
        skeleton: The model, whose weights may be on no device.
        compute_dtype: In which products with these weights are computed.
    """
    from transformers import BitsAndBytesConfig
    from transformers.pytorch_utils import Conv1D

    modules = dict(skeleton.named_modules())
    blocks = tuple(f"{name}." for name, module in modules.items() if isinstance(module, nn.ModuleList))
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)]
    outside = [name for name in linear if not name.startswith(blocks)]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=outside,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def compute_alike_in_both_modes(model: nn.Module) -> None:
    """Let layers in evaluation compute as they do in training.

    On some CPUs bitsandbytes' layers would round scales and inputs to bfloat16 then, so that what is measured is not
    what is trained; and only of widths that are a multiple of 64.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def check_shapes(model: nn.Module, uri: str) -> None:
    """Return where weights in 4 bits have the shapes of the model's configuration.

    Of these transformers compares none, and layers compute with what they are given: some models would even run.

    Raises:
        UserError: ModelLoadFailed, naming a weight.
    """
    layer: Any
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if weight is None or not is_four_bit(weight):
            continue
        given, wanted = list(weight.quant_state.shape), [layer.out_features, layer.in_features]
        if given != wanted:
            raise UserError(
                "ModelLoadFailed",
                f"{uri} cannot be loaded: {name}.weight is {given} in its file, and {wanted} by its config.json; copy "
                "both anew",
            )


def is_four_bit(weight: Tensor) -> bool:
    """Whether a weight is stored in 4 bits, two elements a byte."""
    return getattr(weight, "quant_state", None) is not None


def num_elements(weight: Tensor) -> int:
    """Elements of a weight, those for which it stands where it is stored in 4 bits."""
    state: Any = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else math.prod(state.shape)
