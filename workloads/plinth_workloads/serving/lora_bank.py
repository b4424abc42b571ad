"""Many LoRA adapters of one model, each token of a step with its own or none.

Enters: PEFT folders, now and then, and for each step which rows use which adapter. Leaves: the outputs of the model's
linear layers, with the adapters' updates added. The weights of all adapters lie in one stack for each layer, so that
the rows of a step that have one token, each with another adapter, are two batched products and not two for each adapter
(https://arxiv.org/abs/2310.18547); pieces of prompts are multiplied one by one.

Shapes: A adapters in the stack, R rank, I inputs, O outputs of a layer, N tokens of a step, T tokens of an adapter.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from plinth_workloads.errors import UserError
from plinth_workloads.models.virtual_tokens import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from plinth_workloads.serving.errands import Parts
from plinth_workloads.serving.lazy_zeros import lazy_zeros

MAX_RANK = 256
_PEFT_PREFIX = "base_model.model."

_BYTES_AT_ONCE = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""That are written between two steps: some milliseconds, new memory included."""

_generations = count(1)


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """An adapter as it was loaded: per layer (R, I) and (O, R), the latter scaled already."""

    rank: int
    layers: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(eq=False)
class LoraAdapter:
    """An adapter in the bank.

    Attributes:
        name: By which requests ask for it.
        index: Its place in the stacks.
        salt: Tells its keys and values from those of other adapters, and of earlier ones of the same name.
    """

    name: str
    index: int
    salt: str = field(default_factory=lambda: f"lora-{next(_generations)}")


def load_lora(folder: Path, model: nn.Module) -> LoraWeights:
    """The adapter of a PEFT folder, for a model that is served.

    Raises:
        UserError: ModelLoadFailed where it is damaged, of another kind than LoRA, or for another model.
    """
    config = _config_of(folder)
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError("ModelLoadFailed", f"{folder / ADAPTER_WEIGHTS} cannot be read: {error}") from error
    linears = dict(_linear_layers(model))
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    for key in sorted(tensors):
        name, down, _ = key.removeprefix(_PEFT_PREFIX).partition(".lora_A")
        if not down:
            if ".lora_B" not in key:
                raise UserError("ModelLoadFailed", f"{folder}: {key} is no part of a LoRA of linear layers")
            continue
        down_RI, up_OR = tensors[key], tensors[key.replace(".lora_A", ".lora_B")]
        layer = linears.get(name)
        if layer is None:
            raise UserError("ModelLoadFailed", f"{folder}: the adapter is for another model: no linear layer {name}")
        if (down_RI.shape[1], up_OR.shape[0]) != _sizes(layer):
            raise UserError("ModelLoadFailed", f"{folder}: the adapter is for another model: {name} has another size")
        layers[name] = (down_RI, up_OR * _scale(config, name, down_RI.shape[0]))
    rank = max(down_RI.shape[0] for down_RI, _ in layers.values())
    if rank > MAX_RANK:
        raise UserError("ModelLoadFailed", f"{folder}: rank {rank} is above {MAX_RANK}, the most that is served")
    return LoraWeights(rank, layers)


class LoraBank:
    """The adapters that a model is served with. Its methods belong to the thread that runs the model."""

    def __init__(self, model: nn.Module) -> None:
        self._linears = dict(_linear_layers(model))
        self._device = next(model.parameters()).device
        self._stacks: dict[str, tuple[Tensor, Tensor]] = {}
        self._free: list[int] = []
        self._num, self._rank = 0, 0
        self._bytes_at_once = _BYTES_AT_ONCE[self._device.type]
        self._plan: _StepPlan | None = None

    def attach(self, name: str, weights: LoraWeights) -> Parts[LoraAdapter]:
        """Take in an adapter, in parts between which the model may be called with those that it has already."""
        self._rank = max(weights.rank, self._rank)
        if not self._free:
            before, self._num = self._num, max(4, 2 * self._num)
            self._free += range(before, self._num)
        index, num_bytes = self._free.pop(0), 0
        try:
            for layer in dict.fromkeys((*self._stacks, *weights.layers)):
                num_bytes += self._fit(layer) + self._put(layer, index, weights)
                if num_bytes >= self._bytes_at_once:
                    num_bytes = 0
                    yield
        except BaseException:
            self._free.insert(0, index)
            raise
        return LoraAdapter(name, index)

    def release(self, adapter: LoraAdapter) -> None:
        """Give the place of an adapter back that is detached and that no row uses."""
        self._free = sorted({*self._free, adapter.index})

    @contextmanager
    def using(self, rows: Sequence[tuple[LoraAdapter | None, int]]) -> Iterator[None]:
        """For one call of the model: per row of the step its adapter and how many tokens it has."""
        plan = _StepPlan.of(rows, self._device)
        self._plan = plan if plan.singles or plan.pieces else None
        try:
            yield
        finally:
            self._plan = None

    def _fit(self, layer: str) -> int:
        """Let a layer's stacks have room for all adapters of all ranks; the bytes that are written for that."""
        narrow = self._stacks.get(layer)
        if narrow is not None and narrow[0].shape[::2] == (self._num, self._rank):
            return 0
        weight, (num_inputs, num_outputs) = self._linears[layer].weight, _sizes(self._linears[layer])
        down_AIR = lazy_zeros((self._num, num_inputs, self._rank), like=weight)
        up_ARO = lazy_zeros((self._num, self._rank, num_outputs), like=weight)
        self._stacks[layer] = (down_AIR, up_ARO)
        if narrow is None:
            self._linears[layer].register_forward_hook(self._hook_of(layer))
            return 0
        num, _, rank = narrow[0].shape
        down_AIR[:num, :, :rank], up_ARO[:num, :rank] = narrow
        return down_AIR[:num].nbytes + up_ARO[:num].nbytes

    def _put(self, layer: str, index: int, weights: LoraWeights) -> int:
        """Lay an adapter's weights of a layer in its place; the bytes that are written for that."""
        down_IR, up_RO = (stack[index] for stack in self._stacks[layer])
        down_IR.zero_()
        up_RO.zero_()
        if layer in weights.layers:
            down_RI, up_OR = weights.layers[layer]
            down_IR[:, : len(down_RI)] = down_RI.T
            up_RO[: len(down_RI)] = up_OR.T
        return down_IR.nbytes + up_RO.nbytes

    def _hook_of(self, layer: str) -> Any:
        def add_updates(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self._plan is not None:
                self._plan.add_updates(inputs[0].flatten(0, -2), output.flatten(0, -2), *self._stacks[layer])

        return add_updates


@dataclass(frozen=True, slots=True)
class _StepPlan:
    """Which tokens of a step have which adapter.

    Attributes:
        singles: Whether there are rows of one token with an adapter.
        adapters: The adapters of those, each once.
        places_AT: Per adapter of those, the tokens that have it.
        absent_AT1: Which of these places stand for no token; None where all stand for one.
        pieces: Adapter, and the tokens [first, last) that have it: of one row, or of rows side by side.
    """

    singles: bool
    adapters: Tensor | slice
    places_AT: Tensor
    absent_AT1: Tensor | None
    pieces: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, rows: Sequence[tuple[LoraAdapter | None, int]], device: torch.device) -> "_StepPlan":
        """The plan of a step, whose rows have so many tokens each."""
        by_adapter: dict[int, list[int]] = {}
        pieces: list[tuple[int, int, int]] = []
        first = 0
        for adapter, num_tokens in rows:
            if adapter is not None and num_tokens == 1:
                by_adapter.setdefault(adapter.index, []).append(first)
            elif adapter is not None:
                pieces.append((adapter.index, first, first + num_tokens))
            first += num_tokens
        if len(by_adapter) == 1:
            # The usual case of one adapter: its rows are one piece where they stand together, and nothing is gathered.
            ((index, places),) = by_adapter.items()
            if places[-1] - places[0] == len(places) - 1:
                pieces.append((index, places[0], places[-1] + 1))
                by_adapter = {}
        used = sorted(by_adapter)
        most = max((len(places) for places in by_adapter.values()), default=0)
        padded = [by_adapter[index] + [-1] * (most - len(by_adapter[index])) for index in used]
        places_AT = torch.tensor(padded, dtype=torch.long, device=device)
        is_full = all(len(places) == most for places in by_adapter.values())
        return cls(
            singles=bool(used),
            adapters=slice(0, len(used)) if used == list(range(len(used))) else torch.tensor(used, device=device),
            places_AT=places_AT.clamp(min=0),
            absent_AT1=None if is_full else (places_AT < 0)[..., None],
            pieces=tuple(pieces),
        )

    def add_updates(self, input_NI: Tensor, output_NO: Tensor, down_AIR: Tensor, up_ARO: Tensor) -> None:
        """Add to the outputs of a layer in place."""
        for adapter, first, last in self.pieces:
            output_NO[first:last].addmm_(input_NI[first:last] @ down_AIR[adapter], up_ARO[adapter])
        if not self.singles:
            return
        # A slice is a view; indices would copy the weights of the adapters.
        given_ATI = input_NI[self.places_AT]
        update_ATO = torch.bmm(torch.bmm(given_ATI, down_AIR[self.adapters]), up_ARO[self.adapters])
        if self.absent_AT1 is not None:
            update_ATO = update_ATO.masked_fill(self.absent_AT1, 0)
        output_NO.index_add_(0, self.places_AT.flatten(), update_ATO.flatten(0, 1))


def _config_of(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError("ModelLoadFailed", f"{folder} is no adapter: it has no {ADAPTER_CONFIG}") from error
    except ValueError as error:
        raise UserError("ModelLoadFailed", f"{path} is not JSON: {error}") from error
    kind = config.get("peft_type")
    other = next((name for name in ("use_dora", "modules_to_save") if config.get(name)), None)
    if kind != "LORA" or other is not None:
        what = f"{kind} with {other}" if other else str(kind)
        raise UserError("ModelLoadFailed", f"{folder}: {what} is not served beside others; serve it as spec.model")
    return config


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    pattern = config.get("alpha_pattern") or {}
    alpha = next((value for name, value in pattern.items() if layer.endswith(name)), config["lora_alpha"])
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))


def _sizes(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """Inputs and outputs; a Conv1D is GPT-2's linear layer."""
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
