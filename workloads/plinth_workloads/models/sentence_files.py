"""The files by which sentence-transformers says how a text becomes one vector, beside the weights of its encoder.

Enters: a folder. Leaves: the settings, or the same files written for a model that was trained here, so that its
embeddings are the same wherever it is loaded (https://sbert.net/docs/sentence_transformer/usage/custom_models.html).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plinth_workloads.errors import UserError
from plinth_workloads.models.model_files import read_json, read_json_list
from plinth_workloads.models.pooling import POOLINGS

_MODULES = "modules.json"
_POOLING = "1_Pooling"
_NORMALIZE = "2_Normalize"
_READ_MODULES = ("Transformer", "Pooling", "Normalize")
_OLD_NAMES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Before version 5.3 each pooling had a field, in the order in which several are put together."""


@dataclass(frozen=True, slots=True)
class SentenceSettings:
    """How a text becomes a vector.

    Attributes:
        poolings: How the states of its tokens become one; several are put one behind the other.
        prompt: What is put before a text.
        lower_case: Whether it is written in small letters first.
        max_tokens: The most that it may have, marks included; None for as many as the model has positions.
    """

    poolings: tuple[str, ...] = ("mean",)
    prompt: str = ""
    lower_case: bool = False
    max_tokens: int | None = None


def is_sentence_model(folder: Path) -> bool:
    """Whether a folder says how a text becomes a vector."""
    return (folder / _MODULES).exists() or (folder / _POOLING / "config.json").exists()


def read_sentence_settings(folder: Path, uri: str) -> SentenceSettings:
    """How a text becomes a vector: the mean over its tokens where a folder does not say.

    Args:
        folder: Of the model or adapter.
        uri: What the user calls it.

    Raises:
        UserError: ModelLoadFailed where it asks for what is not done here, or a file cannot be read.
    """
    modules = read_json_list(folder / _MODULES)
    paths = {str(module.get("type")).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    unknown = [kind for kind in paths if kind not in _READ_MODULES]
    if unknown or paths.get("Transformer"):
        what = f"a module {unknown[0]}" if unknown else f"its encoder in {paths['Transformer']}"
        raise UserError(
            "ModelLoadFailed",
            f"{uri} has {what} in {_MODULES}; embeddings are served of an encoder beside it, with "
            f"{' and '.join(_READ_MODULES[1:])} behind it",
        )
    pooling = read_json(folder / paths.get("Pooling", _POOLING) / "config.json")
    poolings = _poolings(pooling)
    other = [name for name in poolings if name not in POOLINGS]
    if other:
        raise UserError("ModelLoadFailed", f"{uri} pools tokens by {other[0]}; what is served is {', '.join(POOLINGS)}")
    prompts = read_json(folder / "config_sentence_transformers.json")
    prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name")) or ""
    if prompt and not pooling.get("include_prompt", True):
        raise UserError("ModelLoadFailed", f"{uri} leaves its prompt out of the pooling, which is not done here")
    transformer = read_json(folder / "sentence_bert_config.json")
    return SentenceSettings(
        poolings, prompt, bool(transformer.get("do_lower_case")), transformer.get("max_seq_length") or None
    )


def _poolings(config: Mapping[str, Any]) -> tuple[str, ...]:
    given = config.get("pooling_mode")
    if given:
        return (given,) if isinstance(given, str) else tuple(given)
    return tuple(name for field, name in _OLD_NAMES.items() if config.get(field)) or SentenceSettings().poolings


def write_sentence_settings(folder: Path, size: int) -> None:
    """Say that a text's vector is the mean of its tokens, of length one.

    Args:
        folder: Of the model or adapter.
        size: Numbers of a token's state.
    """
    kinds = {"Transformer": "", "Pooling": _POOLING, "Normalize": _NORMALIZE}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds.items())
    ]
    (folder / _MODULES).write_text(json.dumps(modules, indent=2))
    pooling = {"word_embedding_dimension": size, **{field: name == "mean" for field, name in _OLD_NAMES.items()}}
    # No file system and no registry keeps a folder without a file.
    for path, content in ((_POOLING, pooling), (_NORMALIZE, {})):
        (folder / path).mkdir(exist_ok=True)
        (folder / path / "config.json").write_text(json.dumps(content, indent=2))
