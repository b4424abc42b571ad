"""Models with a new head: what an adapter of one has to hold, and which labels a folder's model tells apart."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plinth_workloads.errors import UserError
from plinth_workloads.models.catalog import CAUSAL_LM

_TASK_TYPES = {
    CAUSAL_LM: "CAUSAL_LM",
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModel": "FEATURE_EXTRACTION",
}
_WITH_LABELS = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")


def adapter_scope(model: Any, auto_class: str) -> dict[str, Any]:
    """The arguments of peft's configurations that follow from the head.

    The head, and whatever else the base had no weights for (BERT's pooler, after masked language modelling), is trained
    whole and saved with the adapter: no other file has it. What is no part of an embedding gets no adapter.
    """
    arguments: dict[str, Any] = {"task_type": _TASK_TYPES[auto_class]}
    if auto_class in _WITH_LABELS:
        arguments["modules_to_save"] = _trained_whole(model)
    elif auto_class == "AutoModel":
        unused = [name for name, _ in model.named_modules() if name == "pooler" or name.startswith("pooler.")]
        arguments["exclude_modules"] = unused or None
    return arguments


def _trained_whole(model: Any) -> list[str]:
    base = getattr(model, model.base_model_prefix, None)
    heads = [name for name, child in model.named_children() if child is not base and list(child.parameters())]
    new = {name.rpartition(".")[0] for name in getattr(model, "new_weights", ())}
    return heads + sorted(name for name in new if name and name.partition(".")[0] not in heads)


def check_generates_text(folder: Path, uri: str) -> None:
    """Refuse a model or adapter that was trained for something else: its language model's head would be random.

    Args:
        folder: Of the model or adapter.
        uri: What the user calls it.

    Raises:
        UserError: ModelLoadFailed.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    adapter, model = _json(folder / "adapter_config.json"), _json(folder / "config.json")
    classes = model.get("architectures") or []
    is_other_adapter = adapter.get("task_type") not in (None, _TASK_TYPES[CAUSAL_LM])
    if is_other_adapter or (classes and not set(classes) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())):
        what = f"an adapter for {adapter['task_type']}" if is_other_adapter else f"a {classes[0]}"
        raise UserError(
            "ModelLoadFailed",
            f"{uri} is {what}, which generates no text; spec.model of a ModelService is one that does",
        )


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError("ModelLoadFailed", f"{path.parent}: {path.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError("ModelLoadFailed", f"{path.parent}: {path.name} is no JSON object")
    return content


def labels_of(folder: Path) -> dict[str, Any]:
    """The arguments of a configuration by which a folder's model or adapter tells labels apart; none where it has none.

    Raises:
        UserError: ModelLoadFailed where config.json is no JSON object.
    """
    config = _json(folder / "config.json")
    names = config.get("id2label")
    if not names:
        return {}
    id2label = {int(number): name for number, name in names.items()}
    return {
        "id2label": id2label,
        "label2id": {name: number for number, name in id2label.items()},
        **{key: config[key] for key in ("problem_type", "pad_token_id") if config.get(key) is not None},
    }


def check_same_labels(folder: Path, uri: str, implied: Mapping[str, Any]) -> None:
    """Refuse to compare a model with one that tells other labels apart.

    Raises:
        UserError: InvalidSpec.
    """
    theirs, ours = labels_of(folder).get("id2label"), implied.get("id2label")
    if theirs and ours and theirs != ours:
        raise UserError(
            "InvalidSpec",
            f"spec.evaluation.gate: {uri} tells {', '.join(map(str, theirs.values()))} apart, the training data has "
            f"the labels {', '.join(ours.values())}; compare with a model of the same labels",
        )
