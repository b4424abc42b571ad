"""The work queue, with a clock that the test sets."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from plinth_operator.queue import WorkQueue

Scenario = Callable[["Clock", WorkQueue[str]], Awaitable[None]]


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def drive(scenario: Scenario) -> None:
    async def main() -> None:
        clock = Clock()
        await scenario(clock, WorkQueue(clock))

    asyncio.run(main())


async def taken(queue: WorkQueue[str]) -> str | None:
    """The key that is handed out at once, None where there is none."""
    try:
        return await asyncio.wait_for(queue.get(), 0.01)
    except TimeoutError:
        return None


async def same_key_waits_once(clock: Clock, queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.add("b")
    queue.add("a")
    assert queue.depth() == 2
    assert [await taken(queue) for _ in range(3)] == ["a", "b", None]


async def key_in_work_is_handed_to_nobody_else(clock: Clock, queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert await taken(queue) == "a"
    queue.add("a")
    queue.add("a")
    assert await taken(queue) is None
    assert queue.depth() == 0


async def key_added_while_worked_on_comes_again_once(clock: Clock, queue: WorkQueue[str]) -> None:
    queue.add("a")
    await taken(queue)
    queue.add("a")
    queue.add("a")
    queue.done("a")
    assert await taken(queue) == "a"
    queue.done("a")
    assert await taken(queue) is None


async def key_that_is_done_does_not_come_again(clock: Clock, queue: WorkQueue[str]) -> None:
    queue.add("a")
    await taken(queue)
    assert not queue.is_idle()
    queue.done("a")
    assert queue.is_idle()
    assert await taken(queue) is None


async def soonest_of_several_wishes_counts(clock: Clock, queue: WorkQueue[str]) -> None:
    for seconds in (30, 5, 20):
        queue.add_after("a", seconds)
    clock.seconds = 4.9
    assert await taken(queue) is None
    clock.seconds = 5
    assert await taken(queue) == "a"
    queue.done("a")
    clock.seconds = 60
    assert await taken(queue) is None


async def timer_that_is_due_while_worked_on_waits_for_the_end(clock: Clock, queue: WorkQueue[str]) -> None:
    queue.add("a")
    await taken(queue)
    queue.add_after("a", 1)
    clock.seconds = 2
    assert await taken(queue) is None
    queue.done("a")
    assert await taken(queue) == "a"


async def timers_fire_in_the_order_they_are_due(clock: Clock, queue: WorkQueue[str]) -> None:
    queue.add_after("late", 2)
    queue.add_after("soon", 1)
    clock.seconds = 3
    assert [await taken(queue), await taken(queue)] == ["soon", "late"]


async def worker_that_waits_is_woken(clock: Clock, queue: WorkQueue[str]) -> None:
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.add("a")
    assert await asyncio.wait_for(waiting, 1) == "a"


async def worker_that_waits_for_a_timer_sees_an_earlier_one(clock: Clock, queue: WorkQueue[str]) -> None:
    queue.add_after("late", 1000)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add_after("soon", 0)
    assert await asyncio.wait_for(waiting, 1) == "soon"


async def wait_doubles_with_each_failure_up_to_a_minute(clock: Clock, queue: WorkQueue[str]) -> None:
    waits = [queue.retry("a") for _ in range(13)]
    assert waits[:4] == [0.05, 0.1, 0.2, 0.4]
    assert waits[-2:] == [60.0, 60.0]
    assert queue.retry("b") == 0.05


async def success_forgets_the_failures(clock: Clock, queue: WorkQueue[str]) -> None:
    queue.retry("a")
    queue.retry("a")
    queue.succeeded("a")
    assert queue.retry("a") == 0.05


async def wait_that_a_server_asks_for_is_kept_whatever_happens_meanwhile(clock: Clock, queue: WorkQueue[str]) -> None:
    queue.add("a")
    await taken(queue)
    queue.add("a")
    assert queue.retry("a", 3) == 3
    queue.done("a")
    queue.add("a")
    queue.add_after("a", 1)
    clock.seconds = 2.9
    assert await taken(queue) is None
    clock.seconds = 3
    assert await taken(queue) == "a"
    queue.done("a")
    queue.add("a")
    assert await taken(queue) == "a"


async def forgotten_key_is_handed_out_no_more(clock: Clock, queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.add_after("a", 1)
    queue.forget("a")
    clock.seconds = 2
    assert await taken(queue) is None


async def timers_of_forgotten_keys_are_dropped_and_the_others_fire(clock: Clock, queue: WorkQueue[str]) -> None:
    queue.add_after("kept", 5)
    for number in range(1000):
        queue.add_after(f"gone-{number}", 1_000_000)
        queue.forget(f"gone-{number}")
    assert len(queue._timers) < 100
    clock.seconds = 5
    assert await taken(queue) == "kept"


async def age_is_that_of_the_first_in_line(clock: Clock, queue: WorkQueue[str]) -> None:
    assert queue.oldest_seconds() == 0
    queue.add("a")
    clock.seconds = 3
    queue.add("b")
    queue.add("a")
    clock.seconds = 7
    assert queue.oldest_seconds() == 7
    await taken(queue)
    assert queue.oldest_seconds() == 4


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(scenario, id=scenario.__name__.replace("_", " "))
        for scenario in (
            same_key_waits_once,
            key_in_work_is_handed_to_nobody_else,
            key_added_while_worked_on_comes_again_once,
            key_that_is_done_does_not_come_again,
            soonest_of_several_wishes_counts,
            timer_that_is_due_while_worked_on_waits_for_the_end,
            timers_fire_in_the_order_they_are_due,
            worker_that_waits_is_woken,
            worker_that_waits_for_a_timer_sees_an_earlier_one,
            wait_doubles_with_each_failure_up_to_a_minute,
            success_forgets_the_failures,
            wait_that_a_server_asks_for_is_kept_whatever_happens_meanwhile,
            forgotten_key_is_handed_out_no_more,
            timers_of_forgotten_keys_are_dropped_and_the_others_fire,
            age_is_that_of_the_first_in_line,
        )
    ],
)
def test_the_queue(scenario: Scenario):
    drive(scenario)
