"""Work in a thread that ends with it, so that its OpenMP threads slow nobody down (see serving/brief_thread.py)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


def briefly(work: Callable[[], _T]) -> _T:
    """What `work` returns."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
