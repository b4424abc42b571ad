"""The configuration of a new model, and whether its positions hold a row."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from plinth_workloads.errors import UserError
from plinth_workloads.models.image_processor import ImageProcessor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


CAUSAL_LM = "AutoModelForCausalLM"
"""The transformers auto class of causal language models."""


def model_class(auto_class: str) -> Any:
    """The transformers auto class of a name."""
    import transformers

    return getattr(transformers, auto_class)


def new_config(
    architecture: str,
    given: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase | ImageProcessor",
    sequence_length: int,
    implied: Mapping[str, Any] | None = None,
) -> "PretrainedConfig":
    """The configuration of a model with random weights.

    Args:
        architecture: A transformers model type: llama.
        given: Arguments of its configuration class.
        tokenizer: Gives vocabulary and special tokens; an image processor has none.
        sequence_length: Longest row; positions are made to hold it unless `given` says how many there are.
        implied: Arguments that follow from the objective; `given` comes before them.

    Raises:
        UserError: InvalidSpec for an unknown architecture or argument, or values that do not go together.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if architecture not in CONFIG_MAPPING:
        close = difflib.get_close_matches(architecture, list(CONFIG_MAPPING), n=3)
        raise UserError("InvalidSpec", f"spec.model.architecture: transformers knows no {architecture}" + _hint(close))
    known = AutoConfig.for_model(architecture).to_dict()
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=3)
            raise UserError(
                "InvalidSpec", f"spec.model.config.{key}: {architecture} has no such setting" + _hint(close)
            )
    derived = {**_vocabulary(tokenizer), **(implied or {})}
    if isinstance(known.get("max_position_embeddings"), int):
        derived["max_position_embeddings"] = max(known["max_position_embeddings"], sequence_length)
    try:
        return AutoConfig.for_model(architecture, **{**derived, **given})
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = error.__cause__ or error
        raise UserError("InvalidSpec", f"spec.model.config: {architecture} refuses it: {reason}") from error


def _vocabulary(tokenizer: Any) -> dict[str, Any]:
    if isinstance(tokenizer, ImageProcessor):
        return {}
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def check_positions(config: "PretrainedConfig", sequence_length: int) -> None:
    """Refuse rows longer than the model's positions.

    Raises:
        UserError: InvalidSpec.
    """
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if positions is not None and sequence_length > positions:
        raise UserError(
            "InvalidSpec",
            f"spec.training.sequenceLength: {sequence_length} tokens do not fit the model's {positions} positions; "
            "lower it",
        )


def _hint(close: list[str]) -> str:
    return f"; did you mean {' or '.join(close)}?" if close else ""
