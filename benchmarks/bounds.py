"""The bounds that the operator's figures must keep, and the table that shows both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bound:
    """What one figure must stay under; `path` leads to it."""

    what: str
    path: tuple[str, ...]
    most: float


BOUNDS = (
    Bound("CR to RayJob, one at a time, p50 (s)", ("one_at_a_time", "cr_to_rayjob_seconds", "p50"), 0.15),
    Bound("CR to RayJob, one at a time, p99 (s)", ("one_at_a_time", "cr_to_rayjob_seconds", "p99"), 0.5),
    Bound("1,000 CRs at once to the last RayJob (s)", ("all_at_once", "first_cr_to_last_rayjob_seconds"), 60),
    Bound("writes a CR until its RayJob", ("all_at_once", "writes_a_cr_until_rayjob"), 3),
    Bound("memory with all of them and their children (MB)", ("quiet", "operator_megabytes", "resident"), 150),
    Bound("peak memory (MB)", ("churn", "operator_megabytes", "peak"), 250),
    Bound("growth of memory in churn (MB a minute)", ("churn", "megabytes_a_minute"), 0.5),
    Bound("writes while nothing changes", ("quiet", "write_count"), 0),
    Bound("restart to all reconciled (s)", ("restart", "start_to_all_reconciled_seconds"), 10),
    Bound("writes after a restart", ("restart", "write_count"), 0),
    Bound("SIGTERM to exit (s)", ("restart", "sigterm_to_exit_seconds"), 2),
)


def table(figures: Mapping[str, Any]) -> tuple[str, bool]:
    """Every bound with its figure, KubeRay's own time beside ours; and whether all bounds are kept."""
    lines, kept = [f"{'figure':<52}{'measured':>10}{'bound':>8}"], True
    for bound in BOUNDS:
        value: Any = figures
        for part in bound.path:
            value = value[part]
        kept = kept and value <= bound.most
        lines.append(f"{bound.what:<52}{value:>10g}{bound.most:>8g}{'' if value <= bound.most else '  MISSED'}")
    beside = figures["beside_kuberay"]
    lines.append(f"{'taking turns, p50 and p99 (s)':<52}")
    for what in ("kuberay_alone_rayjob_to_raycluster", "plinth_cr_to_rayjob", "plinth_cr_to_raycluster"):
        seconds = beside[f"{what}_seconds"]
        lines.append(f"  {what.replace('_', ' '):<50}{seconds['p50']:>10g}{seconds['p99']:>8g}")
    return "\n".join(lines), kept
