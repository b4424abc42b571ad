"""What is imported while the unit tests are collected stays until the process ends: no garbage is sought there.

Nothing enters, nothing leaves. torch, transformers, Ray and MLflow are half a million objects. A full collection visits
them all, which takes half a second, dozens of times in a run; taking them apart when the interpreter ends takes six.
Garbage that the tests make is found as ever. Apart from the folders below, as pytest asks it before it imports their
files.
"""

import atexit
import gc
import os
from collections.abc import Iterator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if _is_worker(config):
        # Before anything else is imported, so that what else is to be done at the end is done before.
        atexit.register(os._exit, 0)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not _is_worker(session.config):
        # Where the interpreter takes its objects apart, extensions complain of those that it does not see.
        gc.unfreeze()


def _is_worker(config: pytest.Config) -> bool:
    """Whether xdist started this process: https://pytest-xdist.readthedocs.io/en/stable/how-to.html."""
    return hasattr(config, "workerinput")
