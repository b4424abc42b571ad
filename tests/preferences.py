"""Tiny runs that learn a preference: real docstrings of the standard library before the same words in reverse.

Both answers have the same words, so neither their length nor how often a word occurs tells which of them is preferred:
a model that knows no more than that is right half of the time.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from methods import METHODS
from objective_runs import write_docstrings
from plinth_api.run import TrainRun
from training import make_tuning_run, write_jsonl


def write_comparisons(path: Path, *, rows: int = 150) -> Path:
    """Signatures of functions, each with its docstring's first line and with that line's words in reverse order."""
    pairs = [json.loads(line) for line in write_docstrings(path.with_name("docstrings.jsonl")).read_text().splitlines()]
    comparisons = [
        {
            "prompt": pair["prompt"][:60],
            "chosen": pair["completion"],
            "rejected": " ".join(reversed(pair["completion"].split())),
        }
        for pair in pairs
        if 3 <= len(pair["completion"].split()) <= 9
    ]
    return write_jsonl(path, comparisons[:rows])


def make_preference_run(
    folder: Path,
    base: Path,
    loss: str = "dpo",
    method: str = "full",
    *,
    settings: Mapping[str, Any] | None = None,
    **spec: Any,
) -> TrainRun:
    """A run that tunes `base` to `write_comparisons`; `spec` is merged into the job's."""
    method_settings, learning_rate = METHODS[method]
    path = folder / "comparisons.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_comparisons(path)
    changes: dict[str, Any] = {
        "task": {"instruction": None, "preference": {loss: dict(settings or {})}},
        "method": {method: method_settings},
        "data": {"train": [{"uri": f"file://{path}"}], "validation": {"fraction": 0.2}},
    }
    training = {"sequenceLength": 128, "learningRate": learning_rate, **spec.pop("training", {})}
    return make_tuning_run(folder, base, **{**changes, "training": training, **spec})
