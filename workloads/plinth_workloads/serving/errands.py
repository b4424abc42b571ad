"""What is done by the thread that runs a model, between two of its steps: a part each time, so that steps are not late.

Enters: work in parts, from any thread. Leaves: what it returns, as a future. Apart from the thread, which asks for the
next part and knows nothing of the work.
"""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, TypeVar

_Result = TypeVar("_Result")

Parts = Generator[None, None, _Result]
"""Work that yields where a step may come before it goes on."""


class Errands:
    """Those that wait, in the order in which they came. One thread does them; any may bring one."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Parts[Any], Future[Any]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def bring(self, parts: Parts[_Result]) -> Future[_Result]:
        """What `parts` returns or raises. Cancelled before it has begun, it never does; after that it goes on."""
        done: Future[_Result] = Future()
        self._waiting.append((parts, done))
        return done

    def do_part(self) -> None:
        """Do the next part of the first one."""
        while self._waiting:
            parts, done = self._waiting[0]
            if done.running() or done.set_running_or_notify_cancel():
                break
            self._waiting.popleft()
        else:
            return
        try:
            next(parts)
            return
        except StopIteration as end:
            done.set_result(end.value)
        except Exception as error:
            done.set_exception(error)
        self._waiting.popleft()

    def fail_all(self, error: Exception) -> None:
        """Give up what waits and what has begun."""
        while self._waiting:
            parts, done = self._waiting.popleft()
            parts.close()
            if done.running() or done.set_running_or_notify_cancel():
                done.set_exception(error)


def in_one_part(work: Callable[..., _Result], *arguments: Any) -> Parts[_Result]:
    """A call as work that no step comes into."""
    yield from ()
    return work(*arguments)
