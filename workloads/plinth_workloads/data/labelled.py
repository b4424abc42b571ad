"""Labelled rows: a text or a pair of texts with its labels, or words with a label each; and which labels there are.

A label is a text or a whole number, which becomes a text. The labels that a model learns are those of all training
rows, sorted, so that every process and every attempt numbers them alike.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plinth_api.run import RunSource, TrainRun
from plinth_workloads.data.formats import find_column
from plinth_workloads.data.sources import load_source
from plinth_workloads.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

_USUAL_NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "classification": {
        "text": ("text", "sentence", "content"),
        "prompt": ("prompt", "sentence1", "premise"),
        "completion": ("completion", "sentence2", "hypothesis"),
        "label": ("label", "labels"),
    },
    "tokenClassification": {"text": ("tokens", "words"), "label": ("labels", "tags", "ner_tags")},
}
"""Names of columns, by task and by the key of spec.data.columns, the first one first."""


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """One example.

    Attributes:
        place: Source and number of the row, for messages.
        texts: One text or two, or the words of a text.
        labels: Labels of the text, or one for each word.
    """

    place: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]


def read_labelled(source: RunSource, run: TrainRun, cache: Path) -> Iterator[LabelledRow]:
    """The rows of a source.

    Args:
        source: Where the rows are.
        run: Says which task, and which columns.
        cache: Folder that the datasets are kept in.

    Raises:
        UserError: InvalidData, with source and row, for a column or value that is missing or of a wrong type.
    """
    rows = load_source(source, cache / "datasets")
    columns = _columns(rows.column_names, source.uri, run)
    names = _class_names(rows, columns["label"])
    for number, row in enumerate(rows.select_columns(list(columns.values())), start=1):
        place = f"{source.uri} row {number}"
        values = {key: row[column] for key, column in columns.items()}
        try:
            if run.data.task == "tokenClassification":
                yield _words(place, values, names)
            else:
                yield _text(place, values, names, several=run.objective_settings.get("multiLabel", False))
        except _WrongValueError as wrong:
            raise UserError("InvalidData", f"{place}, column {columns[wrong.key]}: {wrong}") from None


def find_labels(run: TrainRun, cache: Path) -> tuple[str, ...]:
    """The labels of all training rows, sorted: numbers by value, then texts; found once, then read from the cache.

    Raises:
        UserError: InvalidData as in `read_labelled`, or where there are too few to tell anything apart.
    """
    described = [[source.to_wire() for source in run.data.train], run.data.columns, run.data.task]
    digest = hashlib.sha256(json.dumps([*described, run.objective_settings]).encode()).hexdigest()[:8]
    path = cache / f"labels-{digest}.json"
    if not path.exists():
        found = {
            label for source in run.data.train for row in read_labelled(source, run, cache) for label in row.labels
        }
        labels = sorted(found, key=lambda label: (not _is_number(label), int(label) if _is_number(label) else 0, label))
        least = 1 if run.objective_settings.get("multiLabel", False) else 2
        if len(labels) < least:
            what = f"have the one label {labels[0]}" if labels else "have no label"
            raise UserError(
                "InvalidData",
                f"{run.data.train[0].uri}: all training examples {what}: there is nothing to tell apart; give examples "
                f"of at least {least} label{'s' if least > 1 else ''}",
            )
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(labels))
        partial.rename(path)
    return tuple(json.loads(path.read_text()))


def numbers_of(row: LabelledRow, known: Mapping[str, int]) -> list[int]:
    """The numbers of a row's labels.

    Raises:
        UserError: InvalidData for a label that no training row has.
    """
    unknown = sorted({label for label in row.labels if label not in known})
    if unknown:
        raise UserError(
            "InvalidData",
            f"{row.place}: no training example has the label {unknown[0]}, the model learns {listed(list(known))}; "
            "give training examples of it, or leave the row out",
        )
    return [known[label] for label in row.labels]


def listed(labels: Sequence[str], most: int = 8) -> str:
    """Labels in a sentence."""
    rest = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + rest


class _WrongValueError(Exception):
    """A value that cannot be used; the message says why."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def _columns(names: Sequence[str], uri: str, run: TrainRun) -> dict[str, str]:
    """The columns to read, by their key in spec.data.columns."""
    usual, given = _USUAL_NAMES[run.data.task], run.data.columns
    found = {key: find_column(key, names, given, usual) for key in usual}
    has_pair = bool(found.get("prompt") and found.get("completion"))
    # What the job names goes before what is only called as usual.
    wants_pair = has_pair and ("prompt" in given or "completion" in given or found["text"] is None)
    keys = ("prompt", "completion", "label") if wants_pair else ("text", "label")
    missing = [key for key in keys if found[key] is None]
    if missing:
        wanted = {
            "classification": "text, or prompt and completion, and label",
            "tokenClassification": "tokens and labels",
        }[run.data.task]
        raise UserError(
            "InvalidData",
            f"{uri} has the columns {', '.join(names)}, task {run.data.task} needs {wanted}; name "
            f"{' and '.join(missing)} in spec.data.columns",
        )
    return {key: name for key in keys if (name := found[key]) is not None}


def _class_names(rows: "Dataset", column: str) -> Sequence[str] | None:
    """The texts of numbered labels, where the data set has them with it."""
    feature: Any = rows.features[column]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return list(names) if names else None


def _text(place: str, values: Mapping[str, Any], names: Sequence[str] | None, *, several: bool) -> LabelledRow:
    keys = [key for key in values if key != "label"]
    for key in keys:
        if not isinstance(values[key], str):
            raise _WrongValueError(key, f"is {_kind(values[key])}, must be text")
    given = values["label"]
    if several and not isinstance(given, list):
        raise _WrongValueError("label", f"is {_kind(given)}, must be a list of labels with multiLabel")
    if not several and isinstance(given, list):
        raise _WrongValueError("label", "is a list; set spec.task.classification.multiLabel for several labels")
    labels = tuple(_label(value, names) for value in (given if several else [given]))
    return LabelledRow(place, tuple(values[key] for key in keys), tuple(dict.fromkeys(labels)))


def _words(place: str, values: Mapping[str, Any], names: Sequence[str] | None) -> LabelledRow:
    words, labels = values["text"], values["label"]
    for key, value in (("text", words), ("label", labels)):
        if not isinstance(value, list):
            raise _WrongValueError(key, f"is {_kind(value)}, must be a list, with one entry for each word")
    for word in words:
        if not isinstance(word, str):
            raise _WrongValueError("text", f"has a word that is {_kind(word)}, must be text")
    if len(words) != len(labels):
        raise _WrongValueError("label", f"has {len(labels)} labels for {len(words)} words; give each word one")
    return LabelledRow(place, tuple(words), tuple(_label(label, names) for label in labels))


def _label(value: Any, names: Sequence[str] | None) -> str:
    if isinstance(value, int) and names is not None:
        if not 0 <= value < len(names):
            raise _WrongValueError("label", f"is {value}, the data set has names for 0 to {len(names) - 1} only")
        return names[value]
    if isinstance(value, str | int) and value != "":
        return str(value)
    raise _WrongValueError("label", f"is {_kind(value)}; a label is a text or a whole number")


def _kind(value: Any) -> str:
    return "empty" if value is None or value == "" else type(value).__name__


def _is_number(label: str) -> bool:
    return label.isascii() and label.removeprefix("-").isdigit()
