"""What a step's counts say of a new version."""

import pytest

from plinth_api.model_service import Canary
from plinth_api.service_state import Samples, VersionCounts
from plinth_operator.status.rollout import figures, judge

CANARY = Canary(interval_seconds=100)


def counts(requests: int, *, errors: int = 0, first: float = 0.1, spread: float = 0.0, running: int = 0):
    times = Samples(count=requests, total=requests * first, squares=requests * (first**2 + spread**2))
    return VersionCounts(requests=requests, errors=errors, first_token=times, running=running)


@pytest.mark.parametrize(
    ("stable", "candidate", "seconds", "reason"),
    [
        pytest.param(counts(900), counts(100), 50, "Counting", id="before the interval has passed"),
        pytest.param(counts(900), counts(100), 100, "Passed", id="after it"),
        pytest.param(counts(900), counts(49), 100, "TooFewRequests", id="few of the new version"),
        pytest.param(counts(49), counts(900), 100, "TooFewRequests", id="few of the old version"),
        pytest.param(counts(0), counts(0), 300, "Passed", id="nobody asks"),
        pytest.param(counts(9), counts(4, running=2), 300, "TooFewRequests", id="they do not end"),
        pytest.param(counts(900), counts(100, errors=1), 100, "Passed", id="as many failures as may be"),
        pytest.param(counts(900), counts(100, errors=2), 100, "HighErrorRate", id="one more"),
        pytest.param(counts(900), counts(30, errors=1), 10, "Counting", id="a failure that others may outweigh"),
        pytest.param(counts(900), counts(30, errors=4), 10, "HighErrorRate", id="failures that they cannot"),
        pytest.param(counts(49), counts(600, errors=6), 290, "TooFewRequests", id="they have, and time has passed"),
        pytest.param(counts(90), counts(90, first=0.2), 100, "HighLatency", id="slower"),
        pytest.param(counts(90), counts(90, first=0.119), 100, "Passed", id="slower by less than may be"),
        pytest.param(
            counts(90, spread=0.5), counts(90, first=0.2, spread=0.5), 100, "Passed", id="slower, perhaps by chance"
        ),
        pytest.param(counts(4), counts(4, first=9.0), 300, "Passed", id="too few to be compared"),
    ],
)
def test_a_version_is_judged_by_its_counts(
    stable: VersionCounts, candidate: VersionCounts, seconds: float, reason: str
):
    verdict = judge(CANARY, stable, candidate, seconds=seconds)
    passes = {"Passed": True, "Counting": None, "TooFewRequests": None}.get(reason, False)
    assert (verdict.reason, verdict.passes) == (reason, passes)


def test_figures_without_requests_are_none():
    assert figures("models:/m/1").to_wire() == {"uri": "models:/m/1", "requests": 0}
