"""One loading of a model: what it may use, and how far it is. What loads tells, what is asked about the service reads.

Apart from both, as files are fetched far below, by what knows nothing of services.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

LoadPhase = Literal["fetching", "loading", "warmingUp"]


@dataclass(frozen=True, slots=True)
class LoadStep:
    """What is being done.

    Attributes:
        phase: Files are fetched, put onto the device, or the engine is tried.
        done_bytes: Of the files that are fetched.
        total_bytes: Of them all; 0 while that is not known.
    """

    phase: LoadPhase
    done_bytes: int = 0
    total_bytes: int = 0


class ModelLoad:
    """The newest step of one loading; any thread may write it, any other read it.

    Attributes:
        step: None while nothing is loaded.
        files: What holds files in the cache as long as the loading reads them.
        max_cache_bytes: What the cache may hold; None for what its volume has.
    """

    def __init__(self, *, max_cache_bytes: int | None = None) -> None:
        self.max_cache_bytes = max_cache_bytes
        self.step: LoadStep | None = None
        self.files = ExitStack()

    def tell(self, step: LoadStep | None) -> None:
        """Put `step` in place of what was told before."""
        self.step = step


_current: ContextVar[ModelLoad | None] = ContextVar("model_load", default=None)


def current_load() -> ModelLoad | None:
    """The loading that this thread is a part of, None where nobody follows it."""
    return _current.get()


@contextmanager
def following(load: ModelLoad) -> Iterator[ModelLoad]:
    """Let what is loaded in this block, by this thread, tell `load`; files are let go of at its end."""
    token = _current.set(load)
    try:
        with load.files:
            yield load
    finally:
        _current.reset(token)
