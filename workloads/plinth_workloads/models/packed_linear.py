"""Linear layers whose weights lie as oneDNN reads them: for models that only compute forward, on a CPU, in fp32.

Enters: a model that was loaded. Leaves: the same model, faster. torch's own linear layer has MKL pack the weights anew
in each call, which for the few tokens of a decoding step takes as long as the multiplication, or longer. What
torch.compile does when it freezes a model is done here without compiling: the same two operators of torch. As they are
no public interface, they are tried first, and left alone where they are missing or give something else.
"""

import functools
import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import count
from typing import cast
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from plinth_workloads.models.output_difference import output_bound, output_difference

logger = logging.getLogger(__name__)

_USUAL_TOKENS = 32
"""For which the layout is chosen; for others it is as good, but for one token, where it loses little."""

_NUMS_TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""What is multiplied at once; other numbers are filled up, larger ones divided. For each number of tokens and shape of
weights that it has met oneDNN keeps half a megabyte of code, up to a thousand times."""

_NUM_PREPARED = _NUMS_TOKENS.index(128) + 1
"""For so many of these the code is made at once, so that requests find it; making it takes a millisecond each."""

_TOLERANCE = 1e-3
"""Of the largest number; what adds in another order differs by far less."""


_KINDS = (nn.Linear, Conv1D)
"""The second is GPT-2's: a linear layer whose weights lie the other way round."""


class PackedLinear(nn.Linear):
    """A linear layer after packing; its weight is an opaque tensor of the same shape, and cannot be trained.

    Attributes:
        number: By which a compiled model finds the layer, as a tensor: the same code serves layers that are alike.
    """

    number: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Linear: (..., in) to (..., out)."""
        if torch.compiler.is_compiling():
            output: Tensor = torch.ops.plinth.packed_linear(input, self.number, self.out_features)
            return output
        return self.multiply(input)

    def multiply(self, input: Tensor) -> Tensor:
        """As `forward`, always computed here and now."""
        num_tokens = input.numel() // self.in_features
        if num_tokens in _NUMS_TOKENS:
            return _linear(input, self.weight, self.bias)
        parts = [self._filled_up(part_NI) for part_NI in input.reshape(-1, self.in_features).split(_NUMS_TOKENS[-1])]
        output_NO = parts[0] if len(parts) == 1 else torch.cat(parts)
        return output_NO.view(*input.shape[:-1], self.out_features)

    def _filled_up(self, input_NI: Tensor) -> Tensor:
        num_tokens = len(input_NI)
        wanted = _NUMS_TOKENS[bisect_left(_NUMS_TOKENS, num_tokens)]
        return _linear(F.pad(input_NI, (0, 0, 0, wanted - num_tokens)), self.weight, self.bias)[:num_tokens]


_numbers = count()
_numbered: WeakValueDictionary[int, PackedLinear] = WeakValueDictionary()

# The compiler cannot see packed weights. Defined by hand: what `custom_op` adds takes 5 us a call, of 25.
_library = torch.library.Library("plinth", "FRAGMENT")
_library.define("packed_linear(Tensor input, Tensor number, int num_outputs) -> Tensor")


@torch.library.impl(_library, "packed_linear", "CPU")
def _packed_linear(input: Tensor, number: Tensor, num_outputs: int) -> Tensor:
    return _numbered[int(number)].multiply(input)


@torch.library.register_fake("plinth::packed_linear")
def _(input: Tensor, number: Tensor, num_outputs: int) -> Tensor:
    return input.new_empty(*input.shape[:-1], num_outputs)


def pack_linear_layers(model: nn.Module, probe: Callable[[], Tensor]) -> None:
    """Pack the linear layers of a model in place, where that is to its good; else leave it as it is.

    A layer that shares its weights, as a tied head does with the embedding, gets a copy. Hooks stay.

    Args:
        model: On its device.
        probe: What the model gives for an input of some tokens, without gradients: it has to stay as it was, which
            it would not where a model reads the weights of its layers itself.
    """
    found = (module for module in model.modules() if isinstance(module, _KINDS) and type(module) in _KINDS)
    layers = [layer for layer in found if _can_be_packed(layer.weight)]
    if not layers or not _works():
        return
    expected = probe()
    kinds = [type(layer) for layer in layers]
    packed = [_pack(layer) for layer in layers]
    difference = _difference(probe, expected)
    if difference is None:
        _prepare(packed)
        logger.info("%d linear layers are packed for oneDNN", len(layers))
        return
    logger.info("%s is not packed for oneDNN: %s", type(model).__name__, difference)
    for layer, kind in zip(packed, kinds, strict=True):
        _unpack(layer, kind)


def _pack(layer: nn.Linear | Conv1D) -> PackedLinear:
    """The same module as another kind."""
    weight_OI = layer.weight.detach()
    if isinstance(layer, Conv1D):
        weight_OI = weight_OI.T
        layer.out_features, layer.in_features = weight_OI.shape
    layer.weight = nn.Parameter(_packed(weight_OI), requires_grad=False)
    layer.__class__ = PackedLinear
    packed = cast(PackedLinear, layer)
    packed.number = torch.tensor(next(_numbers))
    _numbered[int(packed.number)] = packed
    return packed


def _unpack(layer: nn.Module, kind: type[nn.Module]) -> None:
    weight_OI = layer.get_parameter("weight").detach().to_dense()
    weight = weight_OI.T.contiguous() if kind is Conv1D else weight_OI
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.__class__ = kind


@torch.inference_mode()
def _prepare(layers: Sequence[PackedLinear]) -> None:
    for layer in {(layer.in_features, layer.out_features, layer.bias is None): layer for layer in layers}.values():
        for num_tokens in _NUMS_TOKENS[:_NUM_PREPARED]:
            layer(torch.zeros(num_tokens, layer.in_features))


def _difference(probe: Callable[[], Tensor], expected: Tensor) -> str | None:
    try:
        given = probe()
    except Exception as error:
        return str(error) or type(error).__name__
    return output_difference(given, expected, bound=output_bound(expected, _TOLERANCE))


def _can_be_packed(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.is_mkldnn


def _packed(weight_OI: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _USUAL_TOKENS)
    return packed


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return output


@functools.cache
def _works() -> bool:
    """Whether this torch on this machine multiplies with packed weights, and as it should."""
    generator = torch.Generator().manual_seed(0)
    weight_OI, bias_O = torch.rand(48, 64, generator=generator), torch.rand(48, generator=generator)
    try:
        with torch.inference_mode():
            packed = _packed(weight_OI)
            for shape in ((1, 64), (2, 40, 64)):
                input = torch.rand(*shape, generator=generator)
                if not torch.allclose(_linear(input, packed, bias_O), F.linear(input, weight_OI, bias_O), rtol=1e-4):
                    return False
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        logger.info("weights are not packed: %s", error)
        return False
    return True
