"""What two versions' counts say: whether the new one may have more requests; and how a rollout is told. Pure.

Requests are dealt out by turns, so both versions get prompts of the same kinds, and their means can be compared. A
difference counts where it is more than chance: beyond two standard errors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from plinth_api.base import Condition
from plinth_api.model_service import Canary
from plinth_api.service_state import Samples, VersionCounts
from plinth_api.status import RolloutStatus, VersionFigures
from plinth_operator.status.conditions import ConditionStatus, set_condition

MIN_REQUESTS = 50
"""Of each version, to be judged after one interval."""

PATIENCE = 3
"""Intervals after which a step is judged by what there is: nobody asks an idle service, and nobody is hurt."""

_MIN_COMPARED = 5
_STANDARD_ERRORS = 2.0
_NONE = VersionCounts()
_CONDITION = "RolledBack"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from a step's counts.

    Attributes:
        passes: Whether the next step may begin; None while that is open.
        reason: In CamelCase.
        message: For people.
    """

    passes: bool | None
    reason: str
    message: str


def judge(canary: Canary, stable: VersionCounts, candidate: VersionCounts, *, seconds: float) -> Verdict:
    """Whether a step is passed.

    Args:
        canary: What is asked of the new version.
        stable: What the old version did since the step began, all replicas together.
        candidate: What the new one did.
        seconds: How long it has taken its share.
    """
    asked, failed = candidate.requests, candidate.errors
    # Too many even if no other request of this interval failed.
    expected = max(2 * MIN_REQUESTS, asked, asked * canary.interval_seconds / max(1.0, seconds))
    if failed > canary.max_error_rate * expected:
        return _too_many_errors(canary, candidate)
    if seconds < canary.interval_seconds:
        return Verdict(None, "Counting", f"{asked} requests so far, {failed} failed")
    if min(asked, stable.requests) < MIN_REQUESTS and seconds < PATIENCE * canary.interval_seconds:
        text = f"{asked} requests of the new version and {stable.requests} of the old one, of {MIN_REQUESTS} each"
        wait = PATIENCE * canary.interval_seconds
        return Verdict(None, "TooFewRequests", f"{text}; after {wait} s it goes on with what there is")
    if any(counts.running and counts.requests < _MIN_COMPARED for counts in (stable, candidate)):
        # A service is not idle whose requests do not end; each of them does, by its time limit.
        text = f"{candidate.running} requests of the new version and {stable.running} of the old one run"
        return Verdict(None, "TooFewRequests", f"{text}, and too few have ended to be compared")
    if failed > canary.max_error_rate * asked:
        return _too_many_errors(canary, candidate)
    for what, old, new in (
        ("the first token", stable.first_token, candidate.first_token),
        ("each later token", stable.output_token, candidate.output_token),
    ):
        if min(old.count, new.count) >= _MIN_COMPARED and _is_slower(old, new, canary.max_latency_increase):
            text = f"{what} takes {_mean(new):.3g} s, and {_mean(old):.3g} s with the old version"
            return Verdict(False, "HighLatency", f"{text}; maxLatencyIncrease is {canary.max_latency_increase:g}")
    return Verdict(True, "Passed", f"{asked} requests, {failed} failed")


def figures(uri: str, counts: VersionCounts = _NONE) -> VersionFigures:
    """Counts as the status shows them."""
    return VersionFigures(
        uri=uri,
        requests=counts.requests,
        error_rate=_rounded(counts.errors / counts.requests) if counts.requests else None,
        first_token_seconds=_rounded(_mean(counts.first_token)) if counts.first_token.count else None,
        output_token_seconds=_rounded(_mean(counts.output_token)) if counts.output_token.count else None,
    )


def rollout_conditions(
    conditions: tuple[Condition, ...], rollout: RolloutStatus | None, *, now: datetime, generation: int
) -> tuple[Condition, ...]:
    """The conditions with one that says whether the newest version was taken back; without it where none is tried."""
    if rollout is None:
        return tuple(condition for condition in conditions if condition.type != _CONDITION)
    status: ConditionStatus = "True" if rollout.phase == "RolledBack" else "False"
    return set_condition(
        conditions, _CONDITION, status, rollout.reason, rollout.message, now=now, generation=generation
    )


def rollout_news(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, str] | None:
    """Reason and message of the Event for a change of status in wire form; None where no step has begun or ended."""
    before, after = old.get("rollout") or {}, new.get("rollout")
    if not after or _stage(before) == _stage(after):
        return None
    return f"Canary{after['phase']}", str(after.get("message") or after["phase"])


def _stage(rollout: Mapping[str, Any]) -> tuple[Any, ...]:
    return rollout.get("phase"), rollout.get("weight"), (rollout.get("candidate") or {}).get("uri")


def _too_many_errors(canary: Canary, candidate: VersionCounts) -> Verdict:
    text = f"{candidate.errors} of {candidate.requests} requests failed"
    return Verdict(False, "HighErrorRate", f"{text}; maxErrorRate is {canary.max_error_rate:g}")


def _is_slower(old: Samples, new: Samples, increase: float) -> bool:
    bound = 1 + increase
    error = math.sqrt(_variance(new) / new.count + bound**2 * _variance(old) / old.count)
    return _mean(new) - bound * _mean(old) > _STANDARD_ERRORS * error


def _mean(samples: Samples) -> float:
    return samples.total / samples.count


def _variance(samples: Samples) -> float:
    return max(0.0, samples.squares - samples.count * _mean(samples) ** 2) / (samples.count - 1)


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")
