"""The last replica goes once nobody has asked any of them for long enough, and not before."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from plinth_workloads.serving.idle_policy import ScaleToZero


def context(idle: dict[str, list[float]], *, replicas: int | None = None, target: int = 1, requests: float = 0) -> Any:
    """What Serve knows: what replicas told of their idleness, how many run, and requests in flight by its looks."""
    num = len(idle) if replicas is None else replicas
    return SimpleNamespace(
        current_num_replicas=num,
        target_num_replicas=target,
        running_replicas=[f"r{number}" for number in range(num)],
        total_num_requests=requests,
        raw_metrics={
            "idle_seconds": {name: [SimpleNamespace(value=value) for value in told] for name, told in idle.items()}
        },
        policy_state={},
        config=AutoscalingConfig(min_replicas=0, max_replicas=4, target_ongoing_requests=10),
    )


def wanted(*args: Any, **kwargs: Any) -> float:
    return ScaleToZero(60)(context(*args, **kwargs))[0]


@pytest.mark.parametrize(
    ("idle", "replicas"),
    [
        pytest.param({"r0": [10, 59]}, 1, id="not long enough"),
        pytest.param({"r0": [90, 3]}, 1, id="asked meanwhile"),
        pytest.param({"r0": [90], "r1": [3]}, 1, id="one of two was asked"),
        pytest.param({}, 1, id="nothing told yet"),
        pytest.param({"r0": [90]}, 2, id="one of two has told nothing"),
    ],
)
def test_a_replica_stays_while_it_may_be_needed(idle: dict[str, list[float]], replicas: int):
    assert wanted(idle, replicas=max(replicas, len(idle))) == 1


def test_the_last_replica_goes_when_nobody_has_asked_for_long_enough():
    assert wanted({"r0": [10, 61]}) == 0
    # Requests in flight that Serve saw up to half a minute ago are over, or the replica would not be idle.
    assert wanted({"r0": [61], "r1": [70]}, requests=0.2) == 0


@pytest.mark.parametrize(("requests", "replicas"), [(25, 2.5), (3, 1)])
def test_more_replicas_come_by_load(requests: float, replicas: float):
    assert wanted({"r0": [0]}, requests=requests) == replicas


def test_each_configuration_is_tried_by_a_replica_and_zero_kept_after_that():
    policy = ScaleToZero(60)
    assert policy(context({}, target=0))[0] == 1
    assert policy(context({"r0": [61]}))[0] == 0
    assert policy(context({}, target=0))[0] == 0
    assert policy(context({}, target=2))[0] == 2, "those that are being made for requests that wait"


def test_without_anything_told_serve_has_none_to_show():
    seen = context({}, replicas=1)
    seen.raw_metrics = None
    assert ScaleToZero(60)(seen)[0] == 1
