"""Work in a thread of its own: what it makes and raises comes back, and the thread ends with it."""

import asyncio
import threading

import pytest

from plinth_workloads.serving.brief_thread import in_brief_thread


def test_what_the_work_returns_comes_back_from_a_thread_that_ends() -> None:
    threads: list[threading.Thread] = []

    def work(number: int, *, factor: int) -> int:
        threads.append(threading.current_thread())
        return number * factor

    assert asyncio.run(in_brief_thread(work, 3, factor=2)) == 6
    threads[0].join(5)
    assert threads[0] is not threading.main_thread()
    assert not threads[0].is_alive()


def test_what_the_work_raises_comes_back() -> None:
    def work() -> None:
        raise LookupError("nothing here")

    with pytest.raises(LookupError, match="nothing here"):
        asyncio.run(in_brief_thread(work))


def test_work_that_nobody_waits_for_any_more_goes_on_and_harms_nobody() -> None:
    go_on, done = threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait(5)
        done.set()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await in_brief_thread(work)
        go_on.set()
        await asyncio.to_thread(done.wait, 5)

    asyncio.run(give_up())
    assert done.is_set()
