"""A thread for one piece of work, which ends with it: for work with torch beside an engine that decodes.

GNU's OpenMP, with which torch computes on CPUs, keeps the threads that helped a thread for as long as that lives. When
a process has more of them than cores, all of them go to sleep between two operations instead of waiting actively for a
moment, and waking costs a small model a third of its speed. The threads of asyncio.to_thread never end.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


async def in_brief_thread(work: Callable[_Given, _Made], *args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
    """What `work` returns or raises; it goes on where nobody waits for it any more, as no thread can be ended."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[_Made] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not made.done():
            set_outcome(outcome)

    def run() -> None:
        try:
            outcome = work(*args, **kwargs)
        except BaseException as error:
            _tell(loop, settle, made.set_exception, error)
        else:
            _tell(loop, settle, made.set_result, outcome)

    threading.Thread(target=run, name="brief").start()
    return await made


def _tell(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], *outcome: Any) -> None:
    try:
        loop.call_soon_threadsafe(settle, *outcome)
    except RuntimeError:
        # The loop is closed: whoever waited has gone.
        return
