"""What every benchmark writes beside its figures: the machine, the versions, the date and the settings."""

import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
REPOSITORY = Path(__file__).resolve().parents[1]
NO_GPU = "no GPU was measured"
_LOAD_AT_START = os.getloadavg()[0]
_PACKAGES = ("torch", "transformers", "numpy", "pydantic", "safetensors", "liger-kernel")
_OWN_LOAD = "the load is the benchmark's own processes"


def write_record(
    script: str,
    device: torch.device,
    settings: Mapping[str, Any],
    figures: Mapping[str, Any],
    *,
    packages: Sequence[str] = _PACKAGES,
    has_own_load: bool = False,
) -> Path:
    """Write `results/<script>-<device>.json`, in place of an earlier one.

    Args:
        script: Name of the benchmark, without its ending.
        device: What was measured.
        settings: Everything that was chosen.
        figures: Everything that was measured, units in the names.
        packages: Whose versions matter.
        has_own_load: Whether processes of the benchmark's own keep the machine busy, so that its load says nothing of
            others.

    Returns:
        The file.
    """
    record = {
        "benchmark": script,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(device) | ({"contended": _OWN_LOAD} if has_own_load else {}),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "commit": _commit(),
        "settings": settings,
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{script}-{_slug(device)}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def spread(values: Sequence[float], digits: int = 6) -> dict[str, float]:
    """Median, quartiles, extremes and number of some measurements; at least two.

    `median_low` and `median_high` are the order statistics that hold the median with 95% confidence, or the extremes.
    """
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    ordered, reach = sorted(values), 0.98 * len(values) ** 0.5
    lower = max(0, math.floor(len(values) / 2 - reach))
    upper = min(len(values) - 1, math.ceil(len(values) / 2 + reach))
    named = {
        "median": median,
        "median_low": ordered[lower],
        "median_high": ordered[upper],
        "quartile1": low,
        "quartile3": high,
        "min": ordered[0],
        "max": ordered[-1],
    }
    return {**{name: round(value, digits) for name, value in named.items()}, "count": len(values)}


def _machine(device: torch.device) -> dict[str, Any]:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    contended = max(load, _LOAD_AT_START) > cores + 0.5
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_at_start": round(_LOAD_AT_START, 2),
        "load_average_at_end": round(load, 2),
        "contended": "others used this machine: absolute speeds are too low" if contended else "no",
        "torch_threads": torch.get_num_threads(),
        "system": platform.platform(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else NO_GPU,
    }


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit measured, with `-dirty` where tracked files differ from it."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return found.stdout.strip() or None


def _slug(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
