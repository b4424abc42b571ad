"""Small decoders, their blocks prepared as a training does it, and what training them gives."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from plinth_workloads.objectives.causal_lm import CausalLMLoss
from plinth_workloads.train.blocks import prepare_blocks
from training import make_train_run

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2},
    "llama with dropout": {**SMALL, "intermediate_size": 48, "attention_dropout": 0.3},
    "gpt2": SMALL,
}
MODES = ("none", "selective", "full")


def make_model(name: str) -> Any:
    """One of the architectures with random weights."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name.split()[0], **ARCHITECTURES[name])).train()


def prepared(model: Any, tmp_path: Path, mode: str) -> Any:
    """A copy whose blocks keep what the mode says."""
    model = copy.deepcopy(model)
    prepare_blocks(model, make_train_run(tmp_path, training={"activationCheckpointing": mode}), same_width=True)
    return model


def make_batch(*, rows: int = 2, width: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, positions of two documents in the first row, and targets."""
    ids_BT = torch.randint(0, 97, (rows, width), generator=torch.Generator().manual_seed(1))
    positions_BT = torch.arange(width).repeat(rows, 1)
    positions_BT[0, 9:] -= 9
    return ids_BT, positions_BT, ids_BT.roll(-1, 1)


def loss_and_gradients(model: Any, batch: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], int]:
    """The loss, every gradient, and the bytes that the forward pass kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    loss = CausalLMLoss(model)
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(*batch)
    value.backward()
    return {"loss": value.detach(), **{name: p.grad for name, p in model.named_parameters()}}, sum(kept.values())
