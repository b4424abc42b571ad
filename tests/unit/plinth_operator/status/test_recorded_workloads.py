"""What the real Kueue wrote into the Workloads of our RayJobs, and what the status makes of it.

`make e2e-faults` leaves what it sees of them in .plinth/e2e/workloads.json: look there first when Kueue changes.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from plinth_operator.facts import WorkloadFacts
from plinth_operator.status.causes import waiting_cause
from plinth_operator.status.facts import facts_from

RECORDED = Path(__file__).parent / "recorded" / "workload.json"
SHAPES: dict[str, dict[str, Any]] = json.loads(RECORDED.read_text())["shapes"]

PREEMPTED = "Kueue took back the quota (Preempted), and the job waits again: "
STOPPED = "Kueue took back the quota (ClusterQueueStopped), and the job waits again: "
WAITING = {
    "new": ("WaitingForQuota", "the job waits for quota in its queue; it starts by itself"),
    "no such queue": ("QueueNotFound", "LocalQueue nowhere doesn't exist"),
    "its queue is stopped": ("WaitingForQuota", "ClusterQueue training is inactive"),
    "more than the queue has in all": ("ExceedsQuota", "> maximum capacity (300m)"),
    "more than is free": ("WaitingForQuota", "insufficient unused quota for cpu in flavor default, 300m more needed"),
    "waits for a preemption": ("WaitingForQuota", "Pending the preemption of 1 workload(s)"),
    "preempted, and not stopped yet": ("WaitingForQuota", PREEMPTED + "Preempted to accommodate a workload"),
    "preempted and stopped": ("WaitingForQuota", PREEMPTED + "Preempted to accommodate a workload"),
    "preempted, and queued again": ("WaitingForQuota", PREEMPTED + "couldn't assign flavors"),
    "deactivated, and not stopped yet": ("DeactivatedByKueue", "The workload is deactivated"),
    "deactivated": ("DeactivatedByKueue", "The workload is deactivated"),
    "activated again": ("WaitingForQuota", "and the job waits again"),
    "its queue is drained, and it is not stopped yet": ("WaitingForQuota", STOPPED + "The ClusterQueue is stopped"),
    "its queue is drained": ("WaitingForQuota", STOPPED + "ClusterQueue training is inactive"),
}
"""Reason and words of a job whose Workload has this shape, and of which there is nothing else."""

ADMITTED = ("admitted", "admitted again")


def facts_of(shape: str) -> WorkloadFacts:
    facts = facts_from(SHAPES[shape])
    assert isinstance(facts, WorkloadFacts)
    return facts


def test_every_shape_has_its_place():
    assert {*WAITING, *ADMITTED} == set(SHAPES)


@pytest.mark.parametrize("shape", WAITING)
def test_a_job_that_waits_says_why(shape: str):
    facts = facts_of(shape)
    cause = waiting_cause((), (), [facts])
    assert cause is not None
    assert (cause.reason, facts.admitted) == (WAITING[shape][0], False)
    assert WAITING[shape][1] in cause.message


@pytest.mark.parametrize("shape", ADMITTED)
def test_one_that_is_admitted_waits_for_nothing(shape: str):
    facts = facts_of(shape)
    assert (facts.admitted, facts.evicted, facts.inactive) == (True, "", False)
    assert waiting_cause((), (), [facts]) is None


def test_a_workload_is_of_its_ray_job():
    assert facts_of("admitted").owner_name.startswith("patient-")
