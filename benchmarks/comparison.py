"""What was measured beside a peer or a bound, as a table: records enter, lines leave, and whether bounds are kept."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from record import RESULTS

Figures = Mapping[str, Any]
Reading = Callable[[Figures], tuple[str, str, Mapping[str, float]]]
"""From a record's figures: ours and the other one as texts, and their ratio with its spread."""

_NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison.

    Attributes:
        script: Whose record has it.
        what: Is compared.
        read: Takes it out of the record's figures.
        must: The ratio's limit; None where it is told beside another that has one.
        at_least: Whether the limit is the least ratio that will do, or the greatest.
    """

    script: str
    what: str
    read: Reading
    must: float | None
    at_least: bool = True


def line_of(row: Row, record: Mapping[str, Any] | None) -> tuple[str, ...]:
    """A row's cells; a record that is missing, or lacks the sides, is said to be."""
    limit = "" if row.must is None else f"{'>=' if row.at_least else '<='} {row.must:g}"
    try:
        ours, other, ratio = row.read(record["figures"] if record else {})
    except KeyError:
        return row.what, _NOT_MEASURED, "", "", limit, ""
    median = ratio["median"]
    inside = f" ({ratio['median_low']:.2f}-{ratio['median_high']:.2f})" if "median_low" in ratio else ""
    reached = row.must is None or (median >= row.must if row.at_least else median <= row.must)
    contended = record is not None and str(record["machine"].get("contended")).startswith("others")
    note = ("" if reached else "missed") + (" (machine was not quiet)" if contended else "")
    return row.what, ours, other, f"{median:.2f}{inside}", limit, note.strip()


def is_kept(line: Sequence[str]) -> bool:
    """Whether a row was measured and its limit is kept."""
    return line[1] != _NOT_MEASURED and not line[-1].startswith("missed")


def text_of(lines: Sequence[tuple[str, ...]]) -> str:
    """Rows below their heading."""
    lines = [("what: peer or bound", "ours", "it", "ratio", "must be", ""), *lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def tell(rows: Sequence[Row], records: Mapping[str, Mapping[str, Any]]) -> bool:
    """Print rows, from records by their scripts; whether all are kept."""
    lines = [line_of(row, records.get(row.script)) for row in rows]
    sys.stdout.write(text_of(lines))
    return all(is_kept(line) for line in lines)


def tell_measured(rows: Sequence[Row], script: str, figures: Figures) -> bool:
    """Print the rows of a script whose sides it has just measured; whether all of those are kept."""
    record = {"figures": figures, "machine": {}}
    measured = [row for row in rows if row.script == script and line_of(row, record)[1] != _NOT_MEASURED]
    return tell(measured, {script: record})


def main(description: str | None, rows: Sequence[Row]) -> int:
    """The program of a table: that of a device's records; 1 where a limit is not kept."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="the end of the records' names: cpu, nvidia-h100-...")
    device = parser.parse_args().device
    paths = {row.script: RESULTS / f"{row.script}-{device}.json" for row in rows}
    records = {script: json.loads(path.read_text()) for script, path in paths.items() if path.exists()}
    return 0 if tell(rows, records) else 1
