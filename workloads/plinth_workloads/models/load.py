"""Models with weights: new ones from a configuration, existing ones from safetensors, adapters on their base."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from plinth_api.run import TrainRun
from plinth_workloads.errors import UserError
from plinth_workloads.models.adapters import adapter_base_uri, attach, with_adapter
from plinth_workloads.models.catalog import CAUSAL_LM, check_positions, model_class, new_config
from plinth_workloads.models.fetch import fetch_model
from plinth_workloads.models.four_bits import check_shapes, compute_alike_in_both_modes, four_bit_config
from plinth_workloads.models.heads import check_same_labels, labels_of
from plinth_workloads.models.model_files import unusable_files
from plinth_workloads.models.model_load import LoadStep, current_load
from plinth_workloads.models.tasks import task_of
from plinth_workloads.models.tokenizers import load_tokenizer
from plinth_workloads.models.virtual_tokens import num_virtual_tokens
from plinth_workloads.models.weight_files import check_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_for_training(
    run: TrainRun,
    tokenizer: "PreTrainedTokenizerBase",
    base_folder: Path | None,
    auto_class: str = CAUSAL_LM,
    implied: Mapping[str, Any] | None = None,
) -> Any:
    """The model that a run trains: fp32 weights on the CPU, equal in every process.

    With qlora the weights of its linear layers are in 4 bits, and all of it is where it is to be trained.

    Args:
        run: The run document.
        tokenizer: The tokenizer that the data was made with.
        base_folder: Folder of the model to start from; None for random weights.
        auto_class: The transformers class with the objective's head.
        implied: Values of the configuration that follow from the objective.

    Returns:
        A transformers model, which may have virtual tokens, or a peft model around one.

    Raises:
        UserError: InvalidSpec, ModelNotFound or ModelLoadFailed.
    """
    torch.manual_seed(run.training.seed)
    if base_folder is None:
        model = new_model(run, tokenizer, auto_class, implied)
    else:
        model = _base_model(run, base_folder, auto_class, implied)
    model.config.use_cache = False
    if run.method.full is None:
        assert run.model.uri is not None
        model = attach(model, run.method, tokenizer, run.model.uri, run.training.sequence_length, auto_class)
    return model


def _base_model(run: TrainRun, folder: Path, auto_class: str, implied: Mapping[str, Any] | None) -> Any:
    assert run.model.uri is not None
    model = load_model(
        folder,
        run.model.uri,
        auto_class=auto_class,
        implied=implied,
        new_head=True,
        tracking_uri=run.tracking.uri,
        cache_dir=Path(run.work_dir) / "cache",
        **(_in_four_bits(run) if run.method.qlora else {}),
    )
    if num_virtual_tokens(model):
        base_uri = adapter_base_uri(folder)
        raise UserError(
            "InvalidSpec",
            f"spec.model.uri: {run.model.uri} is virtual tokens before {base_uri}, and nothing can be trained "
            f"behind them; start from {base_uri}",
        )
    check_positions(model.config, run.training.sequence_length)
    return model


def _in_four_bits(run: TrainRun) -> dict[str, Any]:
    dtype = torch.bfloat16 if run.training.precision == "bf16" else torch.float32
    return {"four_bits": dtype, "device": "cuda" if run.workers.gpus else "cpu"}


def new_model(
    run: TrainRun,
    tokenizer: "PreTrainedTokenizerBase",
    auto_class: str = CAUSAL_LM,
    implied: Mapping[str, Any] | None = None,
) -> Any:
    """A model with random weights on torch's default device; arguments as of `load_for_training`.

    Raises:
        UserError: InvalidSpec where its settings do not go together.
    """
    assert run.model.architecture is not None
    length = run.training.sequence_length
    config = new_config(run.model.architecture, run.model.config, tokenizer, length, implied)
    check_positions(config, length)
    try:
        return model_class(auto_class).from_config(config)
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:
        raise UserError(
            "InvalidSpec", f"spec.model: no {run.model.architecture} can be made for {run.objective}: {error}"
        ) from error


def load_model(
    folder: Path,
    uri: str,
    *,
    auto_class: str = CAUSAL_LM,
    implied: Mapping[str, Any] | None = None,
    new_head: bool = False,
    tracking_uri: str,
    cache_dir: Path,
    device: str = "cpu",
    four_bits: torch.dtype | None = None,
) -> "PreTrainedModel":
    """The model in a folder; an adapter's base is fetched by the URI that it names, and takes it in.

    On a CPU it is in fp32. On a GPU each tensor goes there as it is read, in the type that its file has: the host holds
    a few of them at a time, never the model. What takes an adapter in is made in fp32 on the host first.

    Args:
        folder: Of the model or adapter.
        uri: What the user calls it; for messages.
        auto_class: The transformers class with the head.
        implied: Values of the configuration that are to hold.
        new_head: Make the head anew where the model's own is for other labels, which is an error otherwise.
        tracking_uri: Where an adapter's base is found.
        cache_dir: Where it is kept.
        device: Where the weights are to be.
        four_bits: Read weights of linear layers into 4 bits, for products in this type; all others are in fp32 then, on
            any device.

    Returns:
        A model whose attribute `new_weights` names the weights that no file had.

    Raises:
        UserError: ModelLoadFailed; ModelNotFound for a base that is gone; InvalidSpec for other labels than `implied`.
    """
    base_uri = adapter_base_uri(folder)
    if not new_head:
        check_same_labels(folder, uri, implied or {})
    if base_uri is None:
        return _whole_model(folder, uri, auto_class, implied or {}, new_head, device, four_bits)
    if four_bits is not None:
        raise UserError(
            "InvalidSpec",
            f"spec.model.uri: {uri} is an adapter of {base_uri}, and only a whole model can be quantised; start from "
            f"{base_uri}, or from a version that a job with output.merge registered",
        )
    return _adapted_model(folder, base_uri, auto_class, implied or {}, tracking_uri, cache_dir).to(device)


def _adapted_model(
    folder: Path, base_uri: str, auto_class: str, implied: Mapping[str, Any], tracking_uri: str, cache_dir: Path
) -> "PreTrainedModel":
    """An adapter's base with the adapter taken in where it was trained: in fp32, on the host."""
    base = load_model(
        fetch_model(base_uri, tracking_uri=tracking_uri, cache_dir=cache_dir),
        base_uri,
        auto_class=auto_class,
        implied={**labels_of(folder), **implied},
        new_head=True,
        tracking_uri=tracking_uri,
        cache_dir=cache_dir,
    )
    return with_adapter(base, folder)


def _whole_model(
    folder: Path,
    uri: str,
    auto_class: str,
    implied: Mapping[str, Any],
    new_head: bool,
    device: str,
    four_bits: torch.dtype | None,
) -> "PreTrainedModel":
    """The model of which a folder has all weights."""
    num_bytes = check_weights(folder, uri)
    if load := current_load():
        load.tell(LoadStep("loading", total_bytes=num_bytes))
    given: dict[str, Any] = {
        # Only a head that is made anew may have another size; any other weight that does not fit is an error.
        "ignore_mismatched_sizes": new_head and "id2label" in implied,
        "dtype": torch.float32 if device == "cpu" or four_bits else "auto",
        "device_map": None if device == "cpu" and not four_bits else {"": device},
        **implied,
    }
    with unusable_files(f"{uri} cannot be loaded"):
        if four_bits is not None:
            given["quantization_config"] = _quantization(folder, auto_class, implied, four_bits)
        try:
            model: PreTrainedModel
            model, found = model_class(auto_class).from_pretrained(
                folder,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                **given,
            )
        except SafetensorError as error:
            raise UserError("ModelLoadFailed", f"{uri} has a damaged safetensors file: {error}") from error
    model.new_weights = frozenset([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if four_bits is not None:
        check_shapes(model, uri)
        compute_alike_in_both_modes(model)
    return model


def _quantization(folder: Path, auto_class: str, implied: Mapping[str, Any], four_bits: torch.dtype) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **implied)
    with torch.device("meta"):
        return four_bit_config(model_class(auto_class).from_config(config), four_bits)


def load_for_inference(
    uri: str, *, tracking_uri: str, cache_dir: Path, device: str = "cpu"
) -> tuple[Any, "PreTrainedTokenizerBase"]:
    """A causal language model in evaluation mode on a device, and its tokenizer; other arguments as of `load_model`.

    Raises:
        UserError: ModelNotFound, TrackingUnavailable, or ModelLoadFailed, also where it generates no text.
    """
    folder = fetch_model(uri, tracking_uri=tracking_uri, cache_dir=cache_dir)
    task_of(folder, uri, "generate")
    tokenizer = load_tokenizer(folder, uri)
    model = load_model(folder, uri, tracking_uri=tracking_uri, cache_dir=cache_dir, device=device)
    return model.eval(), tokenizer
