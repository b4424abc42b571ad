"""Rows of texts that belong together: a query with what answers it and, where there is one, with what does not."""

from collections.abc import Iterator
from pathlib import Path

from plinth_api.run import RunSource, TrainRun
from plinth_workloads.data.formats import find_column
from plinth_workloads.data.sources import load_source
from plinth_workloads.errors import UserError

_USUAL_NAMES = {
    "prompt": ("query", "anchor", "prompt"),
    "completion": ("positive", "document", "completion"),
    "rejected": ("negative", "rejected"),
}
"""Names of columns, by the key of spec.data.columns, the first one first; only the last column may be missing."""


def read_pairs(source: RunSource, run: TrainRun, cache: Path) -> Iterator[tuple[str, str, str]]:
    """Query, positive and negative of each row; the negative is empty where there is none.

    Raises:
        UserError: InvalidData, with source and row, for a column or value that is missing or of a wrong type.
    """
    rows = load_source(source, cache / "datasets")
    columns = {}
    for key, usual in _USUAL_NAMES.items():
        found = find_column(key, rows.column_names, run.data.columns, _USUAL_NAMES)
        if found is not None:
            columns[key] = found
        elif key != "rejected" or key in run.data.columns:
            names = (run.data.columns[key],) if key in run.data.columns else usual
            raise UserError(
                "InvalidData",
                f"{source.uri} has the columns {', '.join(rows.column_names)} and none of {', '.join(names)}; name the "
                f"one to use in spec.data.columns.{key}",
            )
    for number, row in enumerate(rows.select_columns(list(columns.values())), start=1):
        texts = {"rejected": ""}
        for key, column in columns.items():
            text = row[column]
            if text is None and key == "rejected":
                continue
            if not isinstance(text, str):
                what = "empty" if text is None else type(text).__name__
                raise UserError("InvalidData", f"{source.uri} row {number}, column {column}: is {what}, must be text")
            texts[key] = text
        yield texts["prompt"], texts["completion"], texts["rejected"]
