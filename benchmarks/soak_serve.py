"""Mixed load on a served model for half an hour: requests of all kinds, while versions and adapters change.

A small llama behind plain uvicorn, in a process of its own; clients in this one. What each kind of request is answered,
how long that takes, and what the server's process holds, over time: a table, a JSON record and a picture. Ends with 1
where anything is answered as it should not be, or is left behind.

    PYTHONPATH=operator:workloads:tests python benchmarks/soak_serve.py [--seconds 1800] [--rate 20]
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from record import RESULTS, write_record
from soak import MAX_GROWTH_BYTES, Record, soak

_WINDOWS = 30
_PICTURED = "short"
_MEBIBYTE = 2**20


def main() -> int:
    """Soak, tell and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--rate", type=float, default=20, help="requests a second")
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-serve-") as folder:
        record = asyncio.run(soak(Path(folder), seconds=arguments.seconds, requests_per_second=arguments.rate))
    windows = over_time(record, arguments.seconds)
    sys.stdout.write(table(record) + "\n")
    if not arguments.no_record:
        settings = {"seconds": arguments.seconds, "requests_per_second": arguments.rate, "window_of": _PICTURED}
        figures = {**record.as_json(), "latency_by_kind": latencies(record), "over_time": windows}
        packages = ("torch", "transformers", "uvicorn", "fastapi")
        path = write_record("soak_serve", torch.device("cpu"), settings, figures, packages=packages, has_own_load=True)
        draw(windows, RESULTS / "soak_serve-cpu.svg")
        sys.stdout.write(f"{path}\n")
    return 1 if record.problems else 0


def over_time(record: Record, seconds: float) -> list[dict[str, float]]:
    """Memory, and the latencies of short requests, by window."""
    width = seconds / _WINDOWS
    found = []
    for window in range(_WINDOWS):
        begin, end = window * width, (window + 1) * width
        held = [one.own_bytes for one in record.samples if begin <= one.seconds < end]
        took = [one for at, one in record.latencies[_PICTURED] if begin <= at < end]
        if held and len(took) > 1:
            found.append({"seconds": round(end, 1), "own_bytes": int(statistics.median(held)), **_percentiles(took)})
    return found


def latencies(record: Record) -> dict[str, dict[str, float]]:
    """Of each kind of request, in seconds."""
    return {kind: _percentiles([one for _, one in took]) for kind, took in record.latencies.items() if len(took) > 1}


def table(record: Record) -> str:
    """What was asked, what was answered, what was held, and what was wrong."""
    lines = [f"{'requests':28} {'statuses':36} {'p50 s':>8} {'p99 s':>8}"]
    of_kinds = latencies(record)
    for kind, counts in sorted(record.statuses.items()):
        statuses = ", ".join(f"{status or 'left'}: {count}" for status, count in sorted(counts.items()))
        took = of_kinds.get(kind, {"p50": 0.0, "p99": 0.0})
        lines.append(f"{kind:28} {statuses:36} {took['p50']:8.3f} {took['p99']:8.3f}")
    first, last, grown = (
        size / _MEBIBYTE for size in (record.samples[0].own_bytes, record.samples[-1].own_bytes, record.growth_bytes)
    )
    lines += [
        f"{record.num_requests} requests; changes: {dict(record.changes)}",
        f"memory {first:.0f} MiB, in the end {last:.0f}; after the warm-up {grown:+.1f} "
        f"(at most {MAX_GROWTH_BYTES / _MEBIBYTE:.0f})",
        *(f"PROBLEM {problem}" for problem in record.problems),
    ]
    return "\n".join(lines)


def draw(windows: Sequence[dict[str, float]], path: Path) -> None:
    """Memory and latency over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    minutes = [window["seconds"] / 60 for window in windows]
    figure, (memory, latency) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 4))
    memory.plot(minutes, [window["own_bytes"] / _MEBIBYTE for window in windows])
    memory.set(ylabel="own memory, MiB", ylim=(0, None))
    for name in ("p50", "p99"):
        latency.plot(minutes, [window[name] * 1000 for window in windows], label=name)
    latency.set(ylabel=f"{_PICTURED} requests, ms", xlabel="minutes", ylim=(0, None))
    latency.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _percentiles(seconds: Sequence[float]) -> dict[str, Any]:
    hundredths = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": round(hundredths[49], 4), "p99": round(hundredths[98], 4)}


if __name__ == "__main__":
    sys.exit(main())
