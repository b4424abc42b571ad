"""Whether a model is good enough for its alias to move: a pure decision over measured numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plinth_api.common import GateRule
from plinth_workloads.evaluate.metrics import LOWER_IS_BETTER

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The decision and one sentence for each rule."""

    passed: bool
    findings: tuple[str, ...]


def decide_gate(rules: Sequence[GateRule], metrics: Metrics, references: Mapping[str, Metrics | None]) -> GateVerdict:
    """Check every rule.

    Args:
        rules: The gate; none passes always.
        metrics: Of the new model.
        references: For each `betterThan` of the rules, what it names measured on the same examples; None where it names
            nothing yet, which counts as beaten.
    """
    outcomes = [_check(rule, metrics[rule.metric], references) for rule in rules]
    return GateVerdict(all(passed for passed, _ in outcomes), tuple(finding for _, finding in outcomes))


def _check(rule: GateRule, value: float, references: Mapping[str, Metrics | None]) -> tuple[bool, str]:
    if rule.max is not None:
        return _outcome(value <= rule.max, f"{rule.metric} {value:.4g} <= max {rule.max:g}")
    if rule.min is not None:
        return _outcome(value >= rule.min, f"{rule.metric} {value:.4g} >= min {rule.min:g}")
    assert rule.better_than is not None
    reference = references[rule.better_than]
    if reference is None:
        return True, f"passed: {rule.better_than} names no model yet"
    margin, other = rule.by or 0.0, reference[rule.metric]
    better = value < other - margin if rule.metric in LOWER_IS_BETTER else value > other + margin
    by = f" by {margin:g}" if margin else ""
    return _outcome(better, f"{rule.metric} {value:.4g} better than {rule.better_than}'s {other:.4g}{by}")


def _outcome(passed: bool, claim: str) -> tuple[bool, str]:
    return passed, f"{'passed' if passed else 'failed'}: {claim}"
