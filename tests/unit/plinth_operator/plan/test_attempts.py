"""The list of attempts, and what follows from it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from plinth_api.status import Attempt, CheckpointStatus
from plinth_operator.facts import RayJobFacts, RunFacts
from plinth_operator.plan.attempts import (
    Next,
    finished,
    is_preempted_by_queue,
    is_waiting_in_queue,
    known_attempts,
    next_step,
    num_failures,
    with_start,
)
from plinth_operator.status.jobs import seconds_held

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def attempt(number: int = 1, *, ray_job: int | None = None, start: float | None = 0, **fields: Any) -> Attempt:
    started = None if start is None else at(start)
    return Attempt(number=number, ray_job=f"tiny-{ray_job or number}", started_at=started, **fields)


def over(number: int, outcome: str, *, end: float = 100, **fields: Any) -> Attempt:
    return attempt(number, finished_at=at(end), outcome=outcome, **fields)


def ray_job(number: int = 1, **fields: Any) -> RayJobFacts:
    known = {"created_at": T0, "started_at": at(5), "deployment_status": "Running", **fields}
    return RayJobFacts(
        "RayJob", "team-a", f"tiny-{number}", f"uid-{number}", "uid-1", resource_version=1, attempt=number, **known
    )


PREEMPTED = over(1, "Preempted", end=50)


@pytest.mark.parametrize(
    ("remembered", "ray_jobs", "queued", "expected"),
    [
        pytest.param([], [], False, [], id="there is nothing before the first RayJob"),
        pytest.param([], [ray_job()], False, [attempt()], id="a RayJob that status does not know is an attempt"),
        pytest.param(
            [attempt()], [ray_job(created_at=at(9))], False, [attempt()], id="one that status knows stays as it is"
        ),
        pytest.param(
            [over(1, "NodeLost")],
            [ray_job(1), ray_job(2, created_at=at(110))],
            False,
            [over(1, "NodeLost"), attempt(2, start=110)],
            id="the next RayJob is the next attempt",
        ),
        pytest.param(
            [over(2, "NodeLost")], [ray_job(1)], False, [over(2, "NodeLost")], id="an older RayJob is no new attempt"
        ),
        pytest.param(
            [over(1, "NodeLost")],
            [ray_job(started_at=at(200))],
            False,
            [over(1, "NodeLost")],
            id="without Kueue nobody starts the same RayJob again",
        ),
        pytest.param(
            [],
            [ray_job(started_at=None, suspended=True)],
            True,
            [attempt(start=None)],
            id="in a queue an attempt has not started when it is created",
        ),
        pytest.param(
            [attempt(start=None)], [ray_job()], True, [attempt(start=5)], id="Kueue starts it when it admits it"
        ),
        pytest.param(
            [attempt(start=None)],
            [ray_job(suspended=True)],
            True,
            [attempt(start=None)],
            id="a start time does not count while the RayJob is held",
        ),
        pytest.param(
            [],
            [ray_job(suspended=True, deployment_status="Suspended")],
            True,
            [attempt(start=None)],
            id="nor does that of one which is seen for the first time",
        ),
        pytest.param(
            [attempt(start=None)],
            [ray_job(deployment_status="")],
            True,
            [attempt(start=None)],
            id="nor until KubeRay initializes what Kueue has admitted",
        ),
        pytest.param(
            [PREEMPTED],
            [ray_job(started_at=at(90))],
            True,
            [PREEMPTED, attempt(2, ray_job=1, start=90)],
            id="a preempted RayJob that is started again is a new attempt of the same RayJob",
        ),
        pytest.param(
            [PREEMPTED],
            [ray_job(started_at=at(0))],
            True,
            [PREEMPTED],
            id="a preempted RayJob that has not been started anew is none",
        ),
        pytest.param(
            [PREEMPTED],
            [ray_job(started_at=at(90), deployment_status="Suspended")],
            True,
            [PREEMPTED],
            id="nor is one that KubeRay is still stopping",
        ),
        pytest.param(
            [PREEMPTED],
            [ray_job(started_at=at(90), deployment_status="Failed")],
            True,
            [PREEMPTED],
            id="nor is one that is over",
        ),
        pytest.param(
            [PREEMPTED, over(2, "NodeLost", ray_job=1, start=90, end=200)],
            [ray_job(1, started_at=at(90)), ray_job(3, started_at=at(300))],
            True,
            [PREEMPTED, over(2, "NodeLost", ray_job=1, start=90, end=200), attempt(3, start=300)],
            id="a RayJob after it has the number after it",
        ),
    ],
)
def test_known_attempts(remembered: list[Attempt], ray_jobs: list[RayJobFacts], queued: bool, expected: list[Attempt]):
    found = known_attempts(remembered, ray_jobs, queued=queued)
    assert found == expected
    assert known_attempts(found, ray_jobs, queued=queued) == expected


START = Next("start")


@pytest.mark.parametrize(
    ("attempts", "now", "expected"),
    [
        pytest.param([], 0, START, id="the first attempt starts at once"),
        pytest.param([attempt()], 0, Next("run"), id="an attempt that has not ended goes on"),
        pytest.param([over(1, "Succeeded")], 100, Next("succeed"), id="success is the end"),
        pytest.param([over(1, "UserCodeError")], 500, Next("fail"), id="a user's error is final"),
        pytest.param([over(1, "GateFailed")], 500, Next("fail"), id="a failed gate is final"),
        pytest.param([attempt(finished_at=at(9))], 500, Next("fail"), id="an end without outcome is a user's error"),
        pytest.param([over(1, "Preempted")], 100, START, id="a preempted attempt is followed at once"),
        pytest.param([over(1, "Suspended")], 100, START, id="a suspended attempt is followed at once"),
        pytest.param([over(1, "SpecChanged")], 100, START, id="so is one that a change of the spec has replaced"),
        pytest.param([over(1, "NodeLost")], 109, Next("wait", at(110)), id="a lost node is followed after 10 s"),
        pytest.param([over(1, "NodeLost")], 110, START, id="the wait is over in time"),
        pytest.param([over(1, "Unheard")], 110, START, id="an unknown reason is tried again"),
        pytest.param(
            [over(1, "NodeLost"), over(2, "HeadLost")], 100, Next("wait", at(120)), id="the second wait is doubled"
        ),
        pytest.param(
            [over(1, "NodeLost"), over(2, "Preempted"), over(3, "HeadLost")],
            100,
            Next("wait", at(120)),
            id="a preemption between failures doubles nothing",
        ),
        pytest.param(
            [over(number, "NodeLost") for number in (1, 2, 3)], 500, START, id="as many failures as maxRestarts"
        ),
        pytest.param(
            [over(number, "NodeLost") for number in (1, 2, 3, 4)], 500, Next("fail"), id="one failure too many"
        ),
        pytest.param(
            [over(number, "Preempted") for number in range(1, 30)], 100, START, id="preemptions have no budget"
        ),
    ],
)
def test_next_step(attempts: list[Attempt], now: float, expected: Next):
    assert next_step(attempts, 3, at(now)) == expected


@pytest.mark.parametrize(
    ("last_step", "lost_steps", "wait"),
    [
        pytest.param(40, 0, 10, id="an attempt that saved steps is followed at once"),
        pytest.param(40, 20, 40, id="steps that no checkpoint holds are no progress"),
        pytest.param(None, None, 40, id="nor is an attempt that never trained"),
    ],
)
def test_the_wait_begins_anew_with_progress(last_step: int | None, lost_steps: int | None, wait: float):
    further = over(3, "NodeLost", from_step=20, last_step=last_step, lost_steps=lost_steps)
    attempts = [over(1, "NodeLost"), over(2, "HeadLost"), further]
    assert next_step(attempts, 99, at(100)) == Next("wait", at(100 + wait))
    after = [*attempts, over(4, "NodeLost")]
    assert next_step(after, 99, at(100)).at == at(100 + 2 * wait)


def test_the_wait_grows_to_six_minutes():
    waits = [
        next_step([over(number, "NodeLost") for number in range(1, count + 1)], 99, at(100)).at for count in range(1, 9)
    ]
    assert waits == [at(100 + wait) for wait in (10, 20, 40, 80, 160, 320, 360, 360)]


def test_only_failures_of_the_infrastructure_are_counted():
    outcomes = ("NodeLost", "Preempted", "Suspended", "HeadLost", "UserCodeError", "Succeeded")
    assert num_failures([*(over(n, outcome) for n, outcome in enumerate(outcomes, 1)), attempt(9)]) == 2


@pytest.mark.parametrize(
    ("attempts", "seconds"),
    [
        pytest.param([], 0, id="no attempt holds nothing"),
        pytest.param([attempt(start=None)], 0, id="one that waits in the queue holds nothing"),
        pytest.param([attempt(start=100)], 900, id="one that runs holds until now"),
        pytest.param([over(1, "NodeLost"), attempt(2, start=400)], 700, id="what lies between attempts is not held"),
    ],
)
def test_seconds_held(attempts: list[Attempt], seconds: float):
    assert seconds_held(attempts, at(1000)) == seconds


@pytest.mark.parametrize(
    ("outcome", "step", "saved", "lost"),
    [
        pytest.param("NodeLost", 90, 80, 10, id="steps after the checkpoint are lost"),
        pytest.param("NodeLost", 90, None, 90, id="without a checkpoint all are"),
        pytest.param("Succeeded", 90, 80, 0, id="success loses none"),
        pytest.param("Suspended", 90, 80, 0, id="a suspension saves first"),
        pytest.param("NodeLost", None, None, None, id="nothing is known of a run without steps"),
    ],
)
def test_what_an_end_costs(outcome: str, step: int | None, saved: int | None, lost: int | None):
    checkpoint = CheckpointStatus(step=saved, uri="file:///c") if saved is not None else None
    end = finished(attempt(), outcome, at(60), RunFacts("r", "1", step=step), checkpoint)
    assert (end.outcome, end.finished_at, end.last_step, end.lost_steps) == (outcome, at(60), step, lost)


def test_steps_of_earlier_attempts_are_none_of_one_that_never_ran():
    end = finished(attempt(2), "SpecChanged", at(60), RunFacts("r", "1", step=90), None)
    assert (end.last_step, end.lost_steps) == (None, None)


@pytest.mark.parametrize(
    ("start", "last", "lost"),
    [
        pytest.param(80, 90, 10, id="what is done again"),
        pytest.param(90, 90, 0, id="nothing where its last step was saved"),
        pytest.param(94, 94, 0, id="nor where it went on after it was last seen"),
        pytest.param(0, 90, 90, id="everything where no checkpoint could be read"),
    ],
)
def test_where_an_attempt_begins_says_what_the_one_before_lost(start: int, last: int, lost: int):
    first, second = with_start([over(1, "Preempted", last_step=90, lost_steps=40), attempt(2)], start, 91)
    assert (first.last_step, first.lost_steps) == (last, lost)
    assert (second.from_step, second.last_step) == (start, 91)


def test_an_attempt_that_never_trained_has_lost_nothing():
    assert with_start([over(1, "HeadLost"), attempt(2)], 0, None)[0] == over(1, "HeadLost")


@pytest.mark.parametrize(
    ("one", "fields", "preempted", "waiting"),
    [
        pytest.param(attempt(), {}, False, False, id="a RayJob that runs is neither preempted nor waits"),
        pytest.param(attempt(), {"suspended": True}, True, False, id="one that is held while it ran is preempted"),
        pytest.param(attempt(start=None), {"suspended": True}, False, False, id="one that never ran is not"),
        pytest.param(PREEMPTED, {"suspended": True}, False, True, id="after its end it waits"),
        pytest.param(PREEMPTED, {"suspended": True, "deleting": True}, False, False, id="not while it is deleted"),
        pytest.param(PREEMPTED, {"deployment_status": "Suspending"}, False, True, id="KubeRay stopping is a hold"),
        pytest.param(PREEMPTED, {"deployment_status": ""}, False, True, id="it waits until KubeRay initializes it"),
        pytest.param(PREEMPTED, {}, False, False, id="one whose pods were preempted under it does not"),
        pytest.param(over(1, "SpecChanged"), {"suspended": True}, False, False, id="one of an older spec does not"),
    ],
)
def test_what_kueue_does(one: Attempt, fields: dict[str, Any], preempted: bool, waiting: bool):
    facts = ray_job(**fields)
    assert (is_preempted_by_queue(one, facts), is_waiting_in_queue(one, [facts])) == (preempted, waiting)
