"""What a model can be asked for, told by the files of its folder before any weight is read.

Enters: a folder and what a service asks for. Leaves: the task, or a refusal: a head that no file has would be random.
"""

from pathlib import Path
from typing import Any

from plinth_api.run import ServingTask, WantedTask
from plinth_workloads.errors import UserError
from plinth_workloads.models.model_files import read_json
from plinth_workloads.models.sentence_files import is_sentence_model
from plinth_workloads.models.virtual_tokens import ADAPTER_CONFIG

_OF_ADAPTERS: dict[str | None, tuple[ServingTask, ...]] = {
    None: ("generate",),
    "CAUSAL_LM": ("generate",),
    "SEQ_CLS": ("classify",),
    "FEATURE_EXTRACTION": ("embed",),
}
"""By peft's words for what an adapter is for; one that does not say is of a language model."""

_DOES_NOT: dict[WantedTask, str] = {
    "auto": "neither generates text nor embeds or classifies whole texts",
    "generate": "generates no text",
    "embed": "embeds no texts",
    "classify": "classifies no whole texts",
}


def task_of(folder: Path, uri: str, wanted: WantedTask = "auto") -> ServingTask:
    """The task that a model is served for.

    A folder of sentence-transformers embeds, whatever its class. Else a model does what its head is for, and one
    without a head, or with one that restores hidden words, embeds.

    Args:
        folder: Of the model or adapter.
        uri: What the user calls it.
        wanted: The service's spec.task.

    Raises:
        UserError: ModelLoadFailed where the model was not trained for it.
    """
    adapter, config = read_json(folder / ADAPTER_CONFIG), read_json(folder / "config.json")
    possible = _OF_ADAPTERS.get(adapter.get("task_type"), ()) if adapter else _of_model(config)
    if is_sentence_model(folder):
        possible = ("embed", *(task for task in possible if task != "embed"))
    if wanted == "auto" and possible:
        return possible[0]
    for task in possible:
        if task == wanted:
            return task
    what = f"an adapter for {adapter['task_type']}" if adapter else f"a {_class_of(config)}"
    hint = f"; spec.task of a ModelService may be {' or '.join(possible)} with it" if possible else ""
    raise UserError("ModelLoadFailed", f"{uri} is {what}, which {_DOES_NOT[wanted]}{hint}")


def _of_model(config: dict[str, Any]) -> tuple[ServingTask, ...]:
    """What a model without adapters can do, what it was trained for first."""
    from transformers.models.auto import modeling_auto as known

    classes = set(config.get("architectures") or ())
    if not classes or classes & set(known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return ("generate", "embed")
    # What looks at pictures has no vocabulary, and what has a decoder of its own reads two texts.
    if "vocab_size" not in config or config.get("is_encoder_decoder"):
        return ()
    if classes & set(known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()):
        return ("classify", "embed")
    headless = set(known.MODEL_MAPPING_NAMES.values()) | set(known.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())
    return ("embed",) if classes & headless else ()


def _class_of(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or ["model"])[0])
