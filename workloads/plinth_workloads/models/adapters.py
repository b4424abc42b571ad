"""Adapters beside frozen weights, by peft: attached for training, found again by the base model that they name."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plinth_api.adaptation import LoRA
from plinth_workloads.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"


def attach_lora(model: "PreTrainedModel", lora: LoRA, base_uri: str) -> Any:
    """A peft model whose only trainable weights are the adapter's.

    Args:
        model: The base model; its own weights are frozen.
        lora: Rank, scale, dropout and where adapters go.
        base_uri: The base model's registry URI, written into the adapter's configuration.

    Raises:
        UserError: InvalidSpec where the architecture has none of the target modules.
    """
    from peft import LoraConfig, get_peft_model

    names = lora.target_modules
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=names if names == "all-linear" else [name.strip() for name in names.split(",")],
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_uri,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise UserError(
            "InvalidSpec", f"spec.method.lora.targetModules: {names} fits no module of the model: {first}"
        ) from error
    adapted.peft_config["default"].base_model_name_or_path = base_uri
    return adapted


def adapter_base_uri(folder: Path) -> str | None:
    """The base model's URI, where the folder holds an adapter; None where it holds a model."""
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        return None
    base: str = json.loads(path.read_text())["base_model_name_or_path"]
    return base


def merged(adapted: Any) -> Any:
    """The base model with the adapter's update added to its weights."""
    return adapted.merge_and_unload(safe_merge=True)


def load_adapter(model: "PreTrainedModel", folder: Path) -> Any:
    """The model with the adapter of a folder attached.

    Raises:
        UserError: ModelLoadFailed where the adapter is for another model, or has no safetensors.
    """
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").exists():
        raise UserError("ModelLoadFailed", f"{folder} has no adapter_model.safetensors; other formats are not loaded")
    try:
        return PeftModel.from_pretrained(model, folder)
    except (ValueError, RuntimeError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise UserError("ModelLoadFailed", f"{folder}: the adapter does not fit the model: {first}") from error
