"""Tiny runs of the objectives on real data that every machine has: the standard library's source and docstrings.

A loss is compared with that of a trivial model, which knows how often each answer is right and nothing else.
"""

import ast
import textwrap as documented
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plinth_api.run import TrainRun
from plinth_workloads.data.loader import IGNORED, Batch, evaluation_batches
from plinth_workloads.data.prepare import plan_validation
from plinth_workloads.data.token_store import IntArray
from plinth_workloads.train.session import Session
from training import make_train_run, open_alone, write_jsonl

LIBRARY = Path(documented.__file__).parent
MODULES = ("argparse", "calendar", "configparser", "datetime", "difflib", "doctest", "inspect", "locale", "mailbox")
TEXT_MODELS: Mapping[str, Mapping[str, Any]] = {
    "bert": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96},
    "t5": {"d_model": 48, "d_ff": 96, "d_kv": 24, "num_layers": 2, "num_heads": 2},
}

IMAGE_MODEL: Mapping[str, Any] = {
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "decoder_hidden_size": 48,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 96,
}


def write_library(path: Path, *, length: int = 400, documents: int = 400) -> Path:
    """The source of some modules in pieces, as a jsonl file of texts."""
    source = "".join((LIBRARY / f"{name}.py").read_text() for name in MODULES)
    pieces = [source[start : start + length] for start in range(0, len(source), length)]
    return write_jsonl(path, [{"text": piece} for piece in pieces[:documents]])


def write_tables(path: Path, *, length: int = 400) -> Path:
    """The source of code pages, line for line of one form, in pieces: what a tiny encoder learns within seconds."""
    files = [(LIBRARY / "encodings" / f"cp{number}.py").read_text() for number in range(1250, 1256)]
    source = "".join(text.split("decoding_table")[1] for text in files)
    return write_jsonl(path, [{"text": source[at : at + length]} for at in range(0, len(source), length)])


def write_docstrings(path: Path) -> Path:
    """Signatures of functions with the first lines of their docstrings, as a jsonl file of pairs."""
    rows = []
    for name in MODULES:
        for node in ast.walk(ast.parse((LIBRARY / f"{name}.py").read_text())):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                rows.append({"prompt": f"def {node.name}({ast.unparse(node.args)})", "completion": text.split("\n")[0]})
    return write_jsonl(path, rows)


def write_digits(folder: Path, *, images: int = 1797) -> Path:
    """scikit-learn's handwritten digits as a folder of PNG files of 8 x 8 pixels."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True)
    for index, digit in enumerate(load_digits().images[:images]):
        Image.fromarray((digit * 15).astype(np.uint8)).save(folder / f"{index:04}.png")
    return folder


def make_image_run(folder: Path, **spec: Any) -> TrainRun:
    """A run over scikit-learn's digits that restores their masked patches; `spec` is merged into the job's."""
    digits = folder / "digits"
    if not digits.exists():
        write_digits(digits)
    changes: dict[str, Any] = {
        "objective": {"causalLM": None, "maskedImage": {"maskRatio": 0.5}},
        "model": {"architecture": "vit_mae", "config": IMAGE_MODEL, "tokenizer": None},
        "data": {"train": [{"uri": f"file://{digits}", "format": "imageFolder"}]},
    }
    return make_train_run(folder, **{**changes, **spec})


def make_objective_run(
    folder: Path, objective: str, *, architecture: str, settings: Mapping[str, Any] | None = None, **spec: Any
) -> TrainRun:
    """A run over the library's source that learns an objective; `spec` is merged into the job's."""
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        write_library(corpus)
    # The maker's config is a llama's; None takes its keys out.
    llama = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
    config = TEXT_MODELS[architecture]
    changes: dict[str, Any] = {
        "objective": {"causalLM": None, objective: dict(settings or {})},
        "model": {"architecture": architecture, "config": {**dict.fromkeys(llama - set(config)), **config}},
    }
    return make_train_run(folder, **{**changes, **spec})


def validation_batches(session: Session) -> Iterator[Batch]:
    """What the model is measured on."""
    data = session.data
    return evaluation_batches(
        data.validation_rows, plan_validation(data), batch_size=session.run.training.micro_batch_size
    )


def unigram_loss(session: Session, *, steps: int = 20) -> float:
    """Mean cross entropy of the validation labels under the frequency of labels in some steps of training."""
    loader = open_alone(session.run)[0].loop._loader
    seen = _labels(batch for _ in range(steps) for batch in loader.next_step())
    counts = np.bincount(seen, minlength=len(session.data.tokenizer)) + 1.0
    return float(-np.log(counts / counts.sum())[_labels(validation_batches(session))].mean())


def _labels(batches: Iterable[Batch]) -> IntArray:
    labels: IntArray = np.concatenate([batch.inputs["labels_BT"].numpy().ravel() for batch in batches])
    counted: IntArray = labels[labels != IGNORED]
    return counted
