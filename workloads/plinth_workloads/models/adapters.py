"""Adapters beside frozen weights, by peft: attached for training, found again by the base model that they name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import nn

from plinth_api.adaptation import LoRA, Method
from plinth_workloads.errors import UserError
from plinth_workloads.models.catalog import CAUSAL_LM
from plinth_workloads.models.heads import adapter_scope
from plinth_workloads.models.virtual_tokens import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    attach_virtual_tokens,
    holds_virtual_tokens,
    load_virtual_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LLAMA_TARGETS = ("k_proj", "v_proj", "down_proj")
"""What IA3 scales in a llama; the many architectures that name their layers alike are not all in peft's table."""


def attach(
    model: "PreTrainedModel",
    method: Method,
    tokenizer: "PreTrainedTokenizerBase",
    base_uri: str,
    sequence_length: int,
    auto_class: str = CAUSAL_LM,
) -> Any:
    """A model whose only trainable weights are the method's.

    Args:
        model: The base model; its own weights are frozen.
        method: Any but full.
        tokenizer: Of the model.
        base_uri: The base model's registry URI, written into the adapter's configuration.
        sequence_length: Longest row.
        auto_class: The transformers class of the model, which says what an adapter holds beside its own weights.

    Returns:
        A peft model around the base, or for prefix, prompt and promptEncoder the base itself with virtual tokens.

    Raises:
        UserError: InvalidSpec where the architecture has no place for the method.
    """
    from peft import get_peft_model

    if method.num_virtual_tokens:
        return attach_virtual_tokens(model, method, tokenizer, base_uri, sequence_length)
    scope = adapter_scope(model, auto_class)
    config = _ia3_config(model, scope) if method.ia3 else _lora_config(model, method, scope)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise UserError(
            "InvalidSpec", f"spec.method.{method.name}: does not fit {model.config.model_type}: {first}"
        ) from error
    adapted.peft_config["default"].base_model_name_or_path = base_uri
    return adapted


def adapter_base_uri(folder: Path) -> str | None:
    """The base model's URI, where the folder holds an adapter; None where it holds a model.

    Raises:
        UserError: ModelLoadFailed where the adapter does not say it.
    """
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        return None
    try:
        base: str = json.loads(path.read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("ModelLoadFailed", f"{path} does not name the base model: {error!r}") from error
    return base


def merged(adapted: Any) -> Any:
    """The base model with the adapter's update added to its weights."""
    return adapted.merge_and_unload(safe_merge=True)


def load_adapter(model: "PreTrainedModel", folder: Path) -> Any:
    """The model with the adapter of a folder attached.

    Raises:
        UserError: ModelLoadFailed where the adapter is for another model.
    """
    from peft import PeftConfig, PeftModel

    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        if not hasattr(model, "prepare_inputs_for_generation"):
            # An adapter of a language model fits what stands below a head too, but peft's class for it generates.
            config.task_type = None
        return PeftModel.from_pretrained(model, folder, config=config)
    except (ValueError, RuntimeError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise UserError("ModelLoadFailed", f"{folder}: the adapter does not fit the model: {first}") from error


def _check_weights(path: Path) -> None:
    if not path.exists():
        raise UserError("ModelLoadFailed", f"{path.parent} has no {path.name}; other formats are not loaded")
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        size = path.stat().st_size
        raise UserError("ModelLoadFailed", f"{path} ({size:,} bytes) is damaged: {error}; copy it anew") from error


def with_adapter(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """The model that was trained: the adapter of a folder merged in, or its virtual tokens put before.

    Raises:
        UserError: ModelLoadFailed where it is for another model, is damaged, or has no safetensors.
    """
    _check_weights(folder / ADAPTER_WEIGHTS)
    if holds_virtual_tokens(folder):
        return load_virtual_tokens(model, folder)
    adapted: PreTrainedModel = merged(load_adapter(model, folder))
    # peft froze them, and a job that starts from the adapter may train all weights.
    adapted.requires_grad_(True)
    return adapted


def _lora_config(model: "PreTrainedModel", method: Method, scope: dict[str, Any]) -> Any:
    """Peft's configuration of LoRA, QLoRA and DoRA; `scope` is what follows from the head.

    Raises:
        UserError: InvalidSpec, with the names that there are, where the model lacks one that is asked for.
    """
    from peft import LoraConfig

    lora: LoRA | None = method.dora or method.qlora or method.lora
    assert lora is not None
    linear = _linear_layers(model, scope)
    targets: str | list[str] = lora.target_modules
    if targets == "all-linear":
        unknown = [] if linear else [lora.target_modules]
    else:
        targets = [name.strip() for name in lora.target_modules.split(",")]
        unknown = [name for name in targets if not _named(name, [*linear, *_embeddings(model)])]
    if unknown:
        raise UserError(
            "InvalidSpec",
            f"spec.method.{method.name}.targetModules: {model.config.model_type} has no layer {', '.join(unknown)}; "
            f"there are {_last_names(linear)}",
        )
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_dora=method.dora is not None,
        **scope,
    )


def _ia3_config(model: "PreTrainedModel", scope: dict[str, Any]) -> Any:
    """Peft's configuration of IA3: its own targets for an architecture that it knows, llama's where those exist.

    `scope` is what follows from the head.

    Raises:
        UserError: InvalidSpec, with the names that there are, for any other architecture.
    """
    from peft import IA3Config
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING

    if model.config.model_type in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        return IA3Config(**scope)
    linear = _linear_layers(model, scope)
    if not all(_named(name, linear) for name in _LLAMA_TARGETS):
        raise UserError(
            "InvalidSpec",
            f"spec.method.ia3: has no targets in {model.config.model_type}: it needs layers "
            f"{', '.join(_LLAMA_TARGETS)}, there are {_last_names(linear)}; use lora, whose targetModules may be any "
            "of these",
        )
    return IA3Config(target_modules=list(_LLAMA_TARGETS), feedforward_modules=[_LLAMA_TARGETS[-1]], **scope)


def _linear_layers(model: "PreTrainedModel", scope: dict[str, Any]) -> list[str]:
    """Names of the linear layers but the output's and those that `scope` takes out."""
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    others = [*(scope.get("modules_to_save") or ()), *(scope.get("exclude_modules") or ())]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        and not any(name == other or name.startswith(f"{other}.") for other in others)
    ]


def _embeddings(model: "PreTrainedModel") -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]


def _named(name: str, modules: Sequence[str]) -> bool:
    """Whether peft finds `name` among the modules: as a whole name or as the end of one."""
    return any(module == name or module.endswith(f".{name}") for module in modules)


def _last_names(modules: Sequence[str]) -> str:
    return ", ".join(sorted({module.rpartition(".")[2] for module in modules})) or "none"
