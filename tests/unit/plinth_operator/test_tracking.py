"""What is asked of MLflow in the background, with an MLflow that answers when the test says so."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from makers import pretrain_document
from plinth_operator.facts import RunFacts
from plinth_operator.mlflow import Mlflow, MlflowDenied, MlflowError, MlflowUnavailable
from plinth_operator.plan.plan import Plan, RunRequest
from plinth_operator.queue import WorkQueue
from plinth_operator.store import Key, Store
from plinth_operator.tracking import Tracking, pause_seconds

KEY = Key("PretrainJob", "team-a", "tiny")
WANTED = Plan(status={}, want_run=RunRequest("team-a", "tiny", {}))


class FakeMlflow:
    """Creates runs one, two, ... as soon as it may, and remembers how they ended."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self.may_answer = asyncio.Event()
        self.created: list[str] = []
        self.ended: dict[str, str] = {}

    async def running_runs(self) -> Any:
        for run in list[RunFacts]():
            yield run

    async def create_run(self, experiment: str, name: str, tags: dict[str, str], namespace: str) -> RunFacts:
        assert namespace == KEY.namespace
        self.created.append(f"run-{len(self.created) + 1}")
        run_id = self.created[-1]
        await self.may_answer.wait()
        return RunFacts(run_id, "1", status="RUNNING")

    async def end_run(self, run_id: str, status: str) -> None:
        self.ended[run_id] = status

    async def read_runs(self, *_: Any) -> list[RunFacts]:
        if self.trouble is not None:
            raise self.trouble
        return []


class Stage:
    """One resource, and what works for it."""

    def __init__(self) -> None:
        self.mlflow, self.store = FakeMlflow(), Store()
        self.queue: WorkQueue[Key] = WorkQueue(lambda: 0.0)
        self.tracking = Tracking(
            cast(Mlflow, self.mlflow),
            self.store,
            self.queue,
            namespace="",
            now=lambda: datetime(2026, 3, 1, tzinfo=UTC),
        )

    def put(self, version: int, uid: str = "uid-1") -> None:
        document = pretrain_document(namespace="team-a", uid=uid)
        document["metadata"]["resourceVersion"] = str(version)
        self.store.put_resource(document)

    def want(self, uid: str = "uid-1") -> None:
        self.tracking.want(KEY, uid, WANTED, None)

    def delete(self, uid: str = "uid-1") -> None:
        gone = self.store.remove_resource(KEY, uid)
        assert gone is not None
        self.tracking.abandon(KEY, gone)

    async def hears(self, trouble: Exception | None) -> tuple[str, bool]:
        """What is told after MLflow was asked once more, and whether the resources hear of it."""
        self.mlflow.trouble = trouble
        read = Plan(status={}, want_read=True)
        self.tracking._reads.clear()
        self.tracking.want(KEY, "uid-1", read, None)
        self.tracking._up.set()
        await self.rest()
        heard = self.queue.depth() > 0
        self.queue.forget(KEY)
        return self.store.tracking_error, heard

    async def rest(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)


async def one_run_is_created_however_often_it_is_wanted(stage: Stage) -> None:
    stage.put(1)
    for version in range(2, 5):
        stage.want()
        await stage.rest()
        stage.put(version)
    stage.mlflow.may_answer.set()
    await stage.rest()
    assert stage.mlflow.created == ["run-1"]
    run = stage.store.observe(KEY).run
    assert run is not None
    assert run.run_id == "run-1"


async def the_run_of_a_resource_that_goes_while_it_is_made_is_ended(stage: Stage) -> None:
    stage.put(1)
    stage.want()
    await stage.rest()
    stage.delete()
    stage.mlflow.may_answer.set()
    await stage.rest()
    assert stage.mlflow.ended == {"run-1": "KILLED"}


async def a_resource_that_takes_the_name_of_another_gets_a_run_and_the_other_s_is_ended(stage: Stage) -> None:
    stage.mlflow.may_answer.set()
    stage.put(1)
    stage.want()
    await stage.rest()
    stage.delete()
    stage.put(2, uid="uid-2")
    stage.want(uid="uid-2")
    await stage.rest()
    assert stage.mlflow.ended == {"run-1": "KILLED"}
    run = stage.store.observe(KEY).run
    assert run is not None
    assert run.run_id == "run-2"


async def resources_hear_of_each_new_kind_of_trouble_and_of_its_end(stage: Stage) -> None:
    stage.put(1)
    resource = stage.store.resources[KEY]
    resource.run = RunFacts("run-1", "1", status="DELETED")
    away, denied = MlflowUnavailable("status 502"), MlflowDenied("401: You are not authenticated.")
    assert await stage.hears(away) == ("MLflow does not answer (status 502); it is asked again until it does", True)
    told, heard = await stage.hears(MlflowUnavailable("TimeoutError: "))
    assert (told.startswith("MLflow does not answer (TimeoutError"), heard) == (True, False)
    refusal = (
        "MLflow refuses the operator's credentials (401: You are not authenticated.); an administrator has to mend them"
    )
    assert await stage.hears(denied) == (refusal, True)
    assert await stage.hears(denied) == (refusal, False)
    assert await stage.hears(MlflowError("BAD_REQUEST", "no")) == ("MLflow refuses: BAD_REQUEST: no", True)
    assert await stage.hears(None) == ("", True)


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(scenario, id=scenario.__name__.replace("_", " "))
        for scenario in (
            one_run_is_created_however_often_it_is_wanted,
            the_run_of_a_resource_that_goes_while_it_is_made_is_ended,
            a_resource_that_takes_the_name_of_another_gets_a_run_and_the_other_s_is_ended,
            resources_hear_of_each_new_kind_of_trouble_and_of_its_end,
        )
    ],
)
def test_tracking(scenario: Callable[[Stage], Awaitable[None]]):
    async def main() -> None:
        stage = Stage()
        working = asyncio.create_task(stage.tracking.run())
        await stage.rest()
        await scenario(stage)
        working.cancel()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("taken", "num_jobs", "seconds"),
    [
        pytest.param(0.03, 1, 5, id="quick"),
        pytest.param(0.4, 100, 8, id="one page, a twentieth of the time"),
        pytest.param(1.6, 1, 10, id="one page, but MLflow's machine is busy"),
        pytest.param(0.0, 0, 5, id="nothing to read"),
        pytest.param(2.0, 500, 40, id="many pages, a twentieth of the time"),
        pytest.param(30.0, 2000, 60, id="never rarer than every minute"),
    ],
)
def test_few_jobs_are_looked_at_often_even_where_mlflow_is_slow(taken, num_jobs, seconds):
    assert pause_seconds(taken, num_jobs) == pytest.approx(seconds)
