"""Tuning by every method: a tiny llama that has read code of the standard library is to learn its manual's prose."""

import json.decoder
import pydoc_data.topics
import textwrap
from pathlib import Path
from typing import Any

from plinth_api.run import TrainRun
from plinth_workloads.train.export import export_model
from training import ALONE, make_train_run, make_tuning_run, open_alone, write_jsonl

METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({}, 1e-2),
    "lora": ({"r": 4, "targetModules": "q_proj, down_proj"}, 2e-2),
    "qlora": ({"r": 4, "targetModules": "q_proj, down_proj"}, 2e-2),
    "dora": ({"r": 4, "targetModules": "q_proj, down_proj"}, 2e-2),
    "ia3": ({}, 1e-1),
    "prefix": ({"numVirtualTokens": 8}, 5e-2),
    "prompt": ({"numVirtualTokens": 8, "initText": "a page of the manual"}, 2e-1),
    "promptEncoder": ({"numVirtualTokens": 8, "encoderHiddenSize": 32}, 3e-2),
}
"""Settings, and the learning rate that the method wants at this size."""

VIRTUAL_TOKEN_METHODS = ("prefix", "prompt", "promptEncoder")


def make_code_model(folder: Path, *, steps: int = 40) -> Path:
    """A model's folder: a llama of two layers that has read the source of `json`."""
    lines = Path(json.decoder.__file__).read_text().splitlines()
    pieces = ["\n".join(lines[start : start + 12]) for start in range(0, len(lines), 12)]
    write_jsonl(folder / "corpus.jsonl", [{"text": piece} for piece in pieces])
    session, _ = open_alone(make_train_run(folder, training={"steps": steps, "learningRate": 1e-2}))
    session.loop.train()
    export_model(session.run, session.model, session.data.tokenizer, ALONE, folder / "model")
    return folder / "model"


def write_prose(path: Path) -> Path:
    """A jsonl file of paragraphs of Python's manual."""
    text = pydoc_data.topics.topics["assignment"] + pydoc_data.topics.topics["class"]
    paragraphs = [textwrap.shorten(part, 150, placeholder="") for part in text.split("\n\n")]
    return write_jsonl(path, [{"text": paragraph} for paragraph in paragraphs if len(paragraph) > 40])


def make_method_run(folder: Path, base: Path, method: str, **spec: Any) -> TrainRun:
    """A run of 30 steps that tunes `base` to the manual by `method`."""
    settings, learning_rate = METHODS[method]
    changes: dict[str, Any] = {
        "task": {"instruction": None, "completion": {}},
        "method": {method: settings},
        "data": {
            "train": [{"uri": f"file://{write_prose(folder / 'prose.jsonl')}"}],
            "validation": {"fraction": 0.2},
        },
        "evaluation": {"everySteps": 30, "gate": [{"metric": "loss", "betterThan": "base"}]},
    }
    training = {"steps": 30, "learningRate": learning_rate, **spec.pop("training", {})}
    return make_tuning_run(folder, base, **{**changes, "training": training, **spec})
