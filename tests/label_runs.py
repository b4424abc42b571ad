"""Tiny runs of the tasks that give labels or embeddings, on real data that every machine has: the standard library.

What is beaten is stated by `majority_share`: how often the most frequent label is right.
"""

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from makers import fine_tune_document
from objective_runs import LIBRARY, make_objective_run
from plinth_api.parse import parse_resource
from plinth_api.resolve import resolve_train_run
from plinth_api.run import TrainRun
from plinth_workloads.train.export import export_model
from training import ALONE, make_train_run, open_alone, settings_in, write_jsonl

KINDS = ("argparse", "calendar", "difflib")
"""Modules whose lines are told apart."""

Rows = Sequence[Mapping[str, Any]]


def lines_of_modules(modules: Sequence[str] = KINDS, *, most: int = 150) -> list[dict[str, Any]]:
    """Statements of functions, each with the module that it is from."""
    rows = []
    for name in modules:
        found = []
        for node in ast.walk(ast.parse((LIBRARY / f"{name}.py").read_text())):
            if isinstance(node, ast.FunctionDef):
                found += [
                    ast.unparse(statement)[:120] for statement in node.body if not isinstance(statement, ast.Pass)
                ]
        rows += [
            {"text": text, "label": name} for text in sorted(set(found))[:: max(1, len(set(found)) // most)][:most]
        ]
    return rows


def kinds_of_tokens(*, most: int = 120) -> list[dict[str, Any]]:
    """Lines of code as words, each with the kind that Python's own tokenizer gives it."""
    rows: list[dict[str, Any]] = []
    blank = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.COMMENT)
    words: list[str] = []
    kinds: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO((LIBRARY / "calendar.py").read_text()).readline):
        if token.type == tokenize.NEWLINE:
            if 2 < len(words) < 20:
                rows.append({"tokens": words, "labels": kinds})
            words, kinds = [], []
        elif token.type not in blank and "\n" not in token.string:
            words.append(token.string)
            kinds.append(tokenize.tok_name[token.type])
    return rows[:most]


def make_base(folder: Path, architecture: str = "bert", *, steps: int = 2) -> Path:
    """A model's folder: an encoder that has restored hidden code for some steps, or a llama that has written some."""
    training = {"steps": steps, "sequenceLength": 64}
    if architecture == "llama":
        session, _ = open_alone(make_train_run(folder, training=training))
    else:
        config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        run = make_objective_run(
            folder,
            "maskedLM",
            architecture=architecture,
            training=training,
            model={"architecture": architecture, "config": config},
        )
        session, _ = open_alone(run)
    session.loop.train()
    export_model(session.run, session.model, session.data.tokenizer, ALONE, folder / "model")
    return folder / "model"


def make_task_run(folder: Path, base: Path, task: Mapping[str, Any], rows: Rows, **spec: Any) -> TrainRun:
    """A run that tunes `base` to a task over `rows`; `spec` is merged into the job's."""
    data = folder / "rows.jsonl"
    if not data.exists():
        write_jsonl(data, rows)
    changes: dict[str, Any] = {
        "task": {"instruction": None, **task},
        "model": {"uri": f"file://{base}"},
        "method": spec.pop("method", {"full": {}}),
        "data": {"train": [{"uri": f"file://{data}"}], "validation": {"fraction": 0.2}},
        "training": {"steps": 4, "sequenceLength": 64, "globalBatchSize": 8, "learningRate": 3e-3},
    }
    document = fine_tune_document(**{**changes, **_merged(changes, spec)})
    return resolve_train_run(parse_resource(document), settings_in(folder), {})  # type: ignore[arg-type]


def majority_share(labels: Sequence[str]) -> float:
    """How often the most frequent label is right."""
    return Counter(labels).most_common(1)[0][1] / len(labels)


def _merged(changes: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: {**changes[key], **value} if isinstance(changes.get(key), dict) and isinstance(value, dict) else value
        for key, value in spec.items()
    }
