"""When the last replica of a service goes: Ray Serve's autoscaling policy for what scales to zero.

Enters: what Serve knows of a deployment, ten times a second, in Serve's controller. Leaves: how many replicas there
should be. Serve's own policy looks at requests in flight every six seconds: it sees no short one, and would go to zero
in use. So replicas tell how long nobody has asked (`idle_seconds`); several of them come and go by load as ever.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

IDLE_SECONDS = "idle_seconds"
"""What a replica tells, by this name."""


class _Point(Protocol):
    value: float


class _Context(Protocol):
    """What is read of ray.serve.config.AutoscalingContext."""

    current_num_replicas: int
    target_num_replicas: int
    running_replicas: Sequence[Any]
    total_num_requests: float
    raw_metrics: Mapping[str, Mapping[Any, Sequence[_Point]]] | None
    policy_state: dict[str, Any]
    config: Any


class ScaleToZero:
    """Replicas by load, none once nobody has asked any of them for `idle_seconds`.

    Serve makes one anew with each configuration, and with it a replica that tries the version, so that what is wrong
    with it is told before somebody asks.
    """

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._was_tried = False

    def __call__(self, context: _Context) -> tuple[float, dict[str, Any]]:
        """How many replicas there should be, before Serve's bounds and delays; and no state."""
        if context.current_num_replicas == 0:
            # Requests that wait are counted by Serve itself, before it asks.
            return max(context.target_num_replicas, 0 if self._was_tried else 1), {}
        self._was_tried = True
        by_load = context.total_num_requests / context.config.get_target_ongoing_requests()
        return (0 if self._is_idle(context) else max(by_load, 1)), {}

    def _is_idle(self, context: _Context) -> bool:
        told = (context.raw_metrics or {}).get(IDLE_SECONDS, {})
        newest = [points[-1].value for replica in context.running_replicas if (points := told.get(replica))]
        all_tell = len(newest) == len(context.running_replicas)
        return all_tell and min(newest) >= self._idle_seconds
