"""Conditions as Kubernetes has them, and the three by which kstatus (Flux, kubectl wait) understands any resource."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from plinth_api.base import Condition
from plinth_api.status import JobPhase, ServicePhase

ConditionStatus = Literal["True", "False", "Unknown"]

MOST_CHARACTERS = 32768
"""Of a message, as metav1.Condition bounds it; what programs and KubeRay say has no bound."""

_READY, _RECONCILING, _STALLED = "Ready", "Reconciling", "Stalled"

_HOLD: Mapping[str, frozenset[str]] = {
    "Pending": frozenset({_RECONCILING}),
    "Queued": frozenset({_RECONCILING}),
    "Starting": frozenset({_RECONCILING}),
    "Training": frozenset({_RECONCILING}),
    "Evaluating": frozenset({_RECONCILING}),
    "Succeeded": frozenset({_READY}),
    "Failed": frozenset({_STALLED}),
    "Suspended": frozenset(),
    "Ready": frozenset({_READY}),
    "Updating": frozenset({_READY, _RECONCILING}),
    "Degraded": frozenset({_RECONCILING}),
}
"""Which of the three are True in each phase; a job is Ready when it is done, so that what waits for its model waits."""


def set_condition(
    conditions: tuple[Condition, ...],
    kind: str,
    status: ConditionStatus,
    reason: str,
    message: str,
    *,
    now: datetime,
    generation: int | None,
) -> tuple[Condition, ...]:
    """The conditions with this one in its place, or at the end.

    Args:
        conditions: Those so far.
        kind: Type of the condition.
        status: True, False or Unknown.
        reason: In CamelCase.
        message: For people.
        now: Becomes lastTransitionTime where the status is another than before.
        generation: The metadata.generation that this was computed for.
    """
    before = next((condition for condition in conditions if condition.type == kind), None)
    since = before.last_transition_time if before and before.status == status else now.replace(microsecond=0)
    condition = Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message[:MOST_CHARACTERS],
        last_transition_time=since,
        observed_generation=generation,
    )
    if before is None:
        return (*conditions, condition)
    return tuple(condition if other is before else other for other in conditions)


def kstatus_conditions(
    conditions: tuple[Condition, ...],
    phase: JobPhase | ServicePhase,
    reason: str,
    message: str,
    *,
    now: datetime,
    generation: int | None,
    ready: bool | None = None,
) -> tuple[Condition, ...]:
    """The conditions with Ready, Reconciling and Stalled as the phase has them.

    Args:
        conditions: Those so far.
        phase: The phase of the job or service.
        reason: Why; the phase where it is empty.
        message: For people.
        now: As for set_condition.
        generation: As for set_condition.
        ready: Whether a request would be answered, where that is known better than from the phase.
    """
    holds = dict.fromkeys((_READY, _RECONCILING, _STALLED), False) | dict.fromkeys(_HOLD[phase], True)
    if ready is not None:
        holds[_READY] = ready
    for kind, held in holds.items():
        status: ConditionStatus = "True" if held else "False"
        conditions = set_condition(conditions, kind, status, reason or phase, message, now=now, generation=generation)
    return conditions
