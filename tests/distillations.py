"""Tiny runs that learn from a teacher: a llama that has read the source of `json`, and a smaller one that has not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from methods import METHODS, make_code_model
from plinth_api.run import TrainRun
from plinth_workloads.train.export import export_model
from training import ALONE, make_train_run, make_tuning_run, open_alone


def make_teacher_and_student(folder: Path, *, steps: int = 40) -> tuple[Path, Path]:
    """The folders of a teacher and of a student with random weights and the teacher's tokenizer."""
    teacher = make_code_model(folder / "teacher", steps=steps)
    model = {
        "config": {"hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 48},
        "tokenizer": {"train": None, "uri": f"file://{teacher}"},
    }
    data = {"train": [{"uri": f"file://{folder}/teacher/corpus.jsonl"}]}
    session, _ = open_alone(make_train_run(folder / "student", model=model, data=data, training={"steps": 1}))
    export_model(session.run, session.model, session.data.tokenizer, ALONE, folder / "student" / "model")
    return teacher, folder / "student" / "model"


def make_distillation_run(
    folder: Path,
    models: tuple[Path, Path],
    *,
    method: str = "full",
    settings: Mapping[str, Any] | None = None,
    **spec: Any,
) -> TrainRun:
    """A run in which the second of `models` learns from the first, on what that has read; `spec` is merged in."""
    teacher, student = models
    method_settings, learning_rate = METHODS[method]
    corpus = teacher.parent / "corpus.jsonl"
    changes: dict[str, Any] = {
        "task": {"instruction": None, "distillation": {"teacher": {"uri": f"file://{teacher}"}, **(settings or {})}},
        "method": {method: method_settings},
        "data": {"train": [{"uri": f"file://{corpus}"}], "validation": {"fraction": 0.2}},
    }
    training = {"learningRate": learning_rate, **spec.pop("training", {})}
    return make_tuning_run(folder, student, **{**changes, "training": training, **spec})
