"""A minute of mixed load on a served model; `make soak-serve` is half an hour of it."""

import asyncio

import pytest

from soak import soak
from soak_load import KINDS
from soak_server import BROKEN, MODELS

pytestmark = pytest.mark.integration


def test_a_minute_of_mixed_load_fails_nobody_and_leaves_nothing_behind(tmp_path):
    record = asyncio.run(soak(tmp_path, seconds=60, requests_per_second=10))

    assert record.problems == []
    assert set(record.statuses) == {kind.name for kind in KINDS}
    assert record.statuses["flood"][429] > 0
    assert record.statuses["adapter that comes and goes"][200] > 0
    assert set(record.changes) == {"adapters", *(f"version {name}" for name in (*MODELS, BROKEN))}
