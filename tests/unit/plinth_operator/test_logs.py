"""What the operator writes to its log, and what it leaves out."""

import inspect
import json
import logging

import pytest
from kopf._core.reactor import running

from plinth_operator.logs import log_as_json

KOPFS_WARNING = "OS signals are ignored: running not in the main thread."


@pytest.fixture
def restored():
    """The loggers as they were before."""
    root = logging.getLogger()
    changed = [root, *map(logging.getLogger, ("kopf", "asyncio", "aiohttp.access", "kopf.objects"))]
    levels, handlers = [logger.level for logger in changed], list(root.handlers)
    # Whatever is a root handler is closed by log_as_json, pytest's own included.
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    for logger, level in zip(changed, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.usefixtures("restored")
def test_kopfs_warning_of_signals_is_left_out_and_no_other(capsys):
    log_as_json("INFO")
    running.logger.warning(KOPFS_WARNING)
    running.logger.warning("another warning")
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["level"], line["message"]) == ("WARNING", "another warning")


def test_kopf_still_warns_in_these_words():
    assert f'"{KOPFS_WARNING}"' in inspect.getsource(running)
