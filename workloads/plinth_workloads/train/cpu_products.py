"""Products of float32 matrices on a CPU: by oneDNN where torch's own library does not know the processor.

torch multiplies float32 matrices with MKL, which picks its kernels by the processor's maker: it leaves an AMD's AVX-512
unused. oneDNN picks them by what the processor can do. torch gives it float32 products only together with the
permission to round their factors to bfloat16, which oneDNN's kernels take where the processor has AMX. So that is given
where there is none, and after a trial of the numbers.
"""

import logging
from pathlib import Path

import torch
from torch import nn

from plinth_api.run import TrainRun

logger = logging.getLogger(__name__)

WIDE = 256
"""Smallest hidden size at which oneDNN's products were never slower; small ones are too short for its calls."""

_TOLERANCE = 1e-5
"""Of the largest number; factors rounded to bfloat16 are 100 times as far off."""
_TOKENS = 256


def choose_products(model: nn.Module, run: TrainRun) -> bool:
    """Let this process multiply float32 matrices in the faster of two ways that give the same numbers.

    It holds for the whole process, and depends on the run and the processor alone, so that attempts agree.

    Args:
        model: A transformers model, or a peft model around one.
        run: The run document.

    Returns:
        Whether it is oneDNN's.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    matmul.fp32_precision = "none"
    config = getattr(model, "config", None)
    width = getattr(getattr(config, "get_text_config", lambda: config)(), "hidden_size", 0)
    if run.workers.gpus or run.training.precision != "fp32" or width < WIDE or not _unknown_to_mkl():
        return False
    before = _products(width)
    matmul.fp32_precision = "bf16"
    if all(_near(product, expected) for product, expected in zip(_products(width), before, strict=True)):
        return True
    matmul.fp32_precision = "none"
    logger.warning("oneDNN's products of float32 matrices are not those of float32 here; MKL's are taken")
    return False


def _unknown_to_mkl(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this is an AMD with AVX-512 and without AMX, and torch has both libraries."""
    able = torch.cpu.get_capabilities()
    fit = able.get("avx512_bw", False) and not any(on for name, on in able.items() if name.startswith("amx_"))
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return fit and both and cpuinfo.is_file() and "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8")


def _products(width: int) -> list[torch.Tensor]:
    """A layer's product, and those of its two gradients."""
    generator = torch.Generator().manual_seed(0)
    input_TH = torch.randn(_TOKENS, width, generator=generator)
    weight_OH = torch.randn(2 * width, width, generator=generator)
    grad_TO = torch.randn(_TOKENS, 2 * width, generator=generator)
    return [input_TH @ weight_OH.t(), grad_TO @ weight_OH, grad_TO.t() @ input_TH]


def _near(product: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((product - expected).abs().max() <= _TOLERANCE * expected.abs().max())
