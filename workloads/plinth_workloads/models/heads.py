"""Models with a new head: what an adapter of one has to hold, and which labels a folder's model tells apart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plinth_workloads.errors import UserError
from plinth_workloads.models.catalog import CAUSAL_LM
from plinth_workloads.models.model_files import read_json

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


def labels_of(folder: Path) -> dict[str, Any]:
    """The arguments of a configuration by which a folder's model or adapter tells labels apart; none where it has none.

    Raises:
        UserError: ModelLoadFailed where config.json is no JSON object.
    """
    config = read_json(folder / "config.json")
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
