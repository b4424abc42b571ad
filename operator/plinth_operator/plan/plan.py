"""What a plan is: writes to make, facts still missing, and the status to report."""

from dataclasses import dataclass
from typing import Any

from plinth_operator.facts import Manifest, ObjectFacts, RayJobFacts


@dataclass(frozen=True, slots=True)
class RunRequest:
    """An MLflow run to be created, unless one with these tags is known."""

    experiment: str
    name: str
    tags: dict[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from one look at a resource.

    Attributes:
        status: The status in wire form.
        children: Manifests to create or apply, in this order.
        deletions: Children to delete, before anything is applied; RayJobs only if they are still as they were seen.
        look_again: RayJobs that must still be as they were seen for the status to be told.
        look_at_pods: Whether the pods of all these RayJobs must be, too.
        want_run: The MLflow run that is needed to go on.
        want_versions: Alias URIs whose versions are needed to go on.
        want_read: Whether MLflow's newest word on the run is needed to go on.
        end_run: The state that the MLflow run must be brought to; empty for none.
        requeue_seconds: When to look again although nothing has happened.
    """

    status: dict[str, Any]
    children: tuple[Manifest, ...] = ()
    deletions: tuple[ObjectFacts, ...] = ()
    look_again: tuple[RayJobFacts, ...] = ()
    look_at_pods: bool = False
    want_run: RunRequest | None = None
    want_versions: tuple[str, ...] = ()
    want_read: bool = False
    end_run: str = ""
    requeue_seconds: float | None = None
