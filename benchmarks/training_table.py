"""One table of what training reaches: ours, the peer or the bound, their ratio, and what it must be.

Reads the records of the other benchmarks; `make bench-train` measures them and prints it last.

    python benchmarks/training_table.py [--device cpu]
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from record import RESULTS

Figures = Mapping[str, Any]
Reading = Callable[[Figures], tuple[str, str, Mapping[str, float]]]
"""From a record's figures: ours and the other one as texts, and their ratio with its spread."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison.

    Attributes:
        script: Whose record has it.
        what: Is compared.
        read: Takes it out of the record's figures.
        must: The ratio's limit.
        at_least: Whether the limit is the least ratio that will do, or the greatest.
    """

    script: str
    what: str
    read: Reading
    must: float
    at_least: bool = True


def _speed(ours: str, peer: str) -> Reading:
    def read(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
        mine, theirs = figures[ours]["tokens_per_second"], figures[peer]["tokens_per_second"]
        return f"{mine:,} tokens/s", f"{theirs:,} tokens/s", figures[peer][f"{ours}_over_it"]

    return read


def _memory(peer: str) -> Reading:
    def read(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
        mine, theirs = figures["ours"]["peak_bytes"], figures[peer]["peak_bytes"]
        return f"{mine / 2**20:,.0f} MiB", f"{theirs / 2**20:,.0f} MiB", {"median": mine / theirs}

    return read


def _overhead(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
    share = figures["overhead_share_wall"]
    ratio = {name: 1 + share[name] for name in ("median", "median_low", "median_high")}
    return f"{figures['step_seconds']:.3f} s a step", f"{figures['bare_step_seconds']:.3f} s a step", ratio


def _ray(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
    cost, ours, bare = (figures[name] for name in ("cost_share", "step_seconds", "bare_step_seconds"))
    ratio = {name: 1 + cost[name] for name in ("median", "median_low", "median_high")}
    return f"{ours['median']:.3f} s a step", f"{bare['median']:.3f} s a step", ratio


def _stall(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
    stall, step = figures["stall_seconds"]["median"], figures["quiet_step_seconds"]["median"]
    return f"{stall:.3f} s", f"{step:.3f} s", {"median": figures["stall_share_of_a_step"]}


def _loss_memory(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
    peaks = [sizes["ours"]["peak_bytes"] / 2**20 for sizes in figures["trained"].values()]
    growth = max(figures["growth_of_ours_over_vocabularies"].values())
    return f"{peaks[-1]:.0f} MiB", f"{peaks[0]:.0f} MiB", {"median": growth}


ROWS = (
    Row("train_peers", "pretraining: Trainer, its defaults", _speed("ours", "trainer"), 1.2),
    Row("train_peers", "pretraining, compiled: Trainer, its defaults", _speed("ours_compiled", "trainer"), 1.2),
    Row("train_peers", "pretraining, compiled: Trainer at its best", _speed("ours_compiled", "trainer_best"), 1.0),
    Row("train_peers", "pretraining: bound, a bare loop over our model", _speed("ours", "bare"), 0.9),
    Row("train_peers_bf16", "the same in bf16: Trainer, its defaults", _speed("ours", "trainer"), 1.2),
    Row("train_peers_bf16", "in bf16, compiled: Trainer, its defaults", _speed("ours_compiled", "trainer"), 1.2),
    Row("train_peers_bf16", "in bf16, compiled: Trainer at its best", _speed("ours_compiled", "trainer_best"), 1.0),
    Row("train_peers_bf16", "in bf16: bound, a bare loop over our model", _speed("ours", "bare"), 0.9),
    Row("tune_peers", "LoRA: TRL without packing", _speed("ours", "trl"), 2.0),
    Row("tune_peers", "LoRA: TRL with packing", _speed("ours", "trl_packed"), 1.1),
    Row("tune_peers", "LoRA, peak memory: TRL without packing", _memory("trl"), 1.0, at_least=False),
    Row("tune_peers", "LoRA, peak memory: TRL with packing", _memory("trl_packed"), 1.0, at_least=False),
    Row("train_overhead", "the loop, its checkpoints: a bare loop", _overhead, 1.03, at_least=False),
    Row("train_overhead_mlflow", "the same, tracked in MLflow: a bare loop", _overhead, 1.03, at_least=False),
    Row("ray_overhead", "Ray Train, MLflow, checkpoints: torchrun, a bare loop", _ray, 1.03, at_least=False),
    Row("checkpoint_stall", "stall of a checkpoint: one step", _stall, 1.0, at_least=False),
    Row("loss_memory", "memory of the loss, 256k tokens: 8k", _loss_memory, 1.05, at_least=False),
)


def line_of(row: Row, record: Mapping[str, Any] | None) -> tuple[str, ...]:
    """A row's cells; a record that is missing, or lacks the sides, is said to be."""
    limit = f"{'>=' if row.at_least else '<='} {row.must:g}"
    try:
        ours, other, ratio = row.read(record["figures"] if record else {})
    except KeyError:
        return row.what, "not measured", "", "", limit, ""
    median = ratio["median"]
    inside = f" ({ratio['median_low']:.2f}-{ratio['median_high']:.2f})" if "median_low" in ratio else ""
    reached = median >= row.must if row.at_least else median <= row.must
    contended = record is not None and str(record["machine"].get("contended")).startswith("others")
    note = ("" if reached else "missed") + (" (machine was not quiet)" if contended else "")
    return row.what, ours, other, f"{median:.2f}{inside}", limit, note.strip()


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """All rows, from records by their scripts."""
    lines: list[tuple[str, ...]] = [("what: peer or bound", "ours", "it", "ratio", "must be", "")]
    lines += [line_of(row, records.get(row.script)) for row in ROWS]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def main() -> int:
    """Print the table of a device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="the end of the records' names: cpu, nvidia-h100-...")
    device = parser.parse_args().device
    paths = {row.script: RESULTS / f"{row.script}-{device}.json" for row in ROWS}
    sys.stdout.write(table({script: json.loads(path.read_text()) for script, path in paths.items() if path.exists()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
