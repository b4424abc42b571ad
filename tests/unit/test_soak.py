"""What a soak finds in its record."""

from dataclasses import asdict

import pytest

from soak import MAX_GROWTH_BYTES, Record, Sample, left_behind

MEGABYTE = 2**20


def make_record(*, own=lambda second: 800 * MEGABYTE, **after):
    """A hundred seconds of a server, and what it held in the end."""
    samples = [Sample(second, own(second), files=20, threads=10) for second in range(100)]
    last = Sample(101, 0, files=20, threads=10)
    held = {"tasks": 2, "clients": 0, "prefix_blocks": 30, "slots": 8, "sample": asdict(last)}
    return Record(samples=samples, before={"tasks": 2}, after={**held, **after})


def test_what_stays_as_it_was_is_well():
    assert left_behind(make_record()) == []


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(lambda second: 800 * MEGABYTE + 60 * MEGABYTE * min(second, 20), id="while it warms up"),
        pytest.param(lambda second: 800 * MEGABYTE + 100 * MEGABYTE * (40 < second < 60), id="for a while"),
    ],
)
def test_memory_may_grow(own):
    assert left_behind(make_record(own=own)) == []


def test_memory_that_grows_all_the_time_is_found():
    record = make_record(own=lambda second: 800 * MEGABYTE + second * MEGABYTE)
    assert record.growth_bytes == 50 * MEGABYTE > MAX_GROWTH_BYTES
    assert left_behind(record) == ["memory grew by 50.0 MiB"]


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ({"tasks": 9}, "2 tasks became 9"),
        ({"clients": 1}, "1 clients still have places"),
        ({"prefix_blocks": 65}, "65 blocks are found, 64 may be"),
        ({"slots": 9}, "9 slots"),
        ({"sample": {"files": 25, "threads": 10}}, "20 open files became 25"),
        ({"sample": {"files": 20, "threads": 13}}, "10 threads became 13"),
    ],
)
def test_what_is_left_behind_is_found(after, says):
    assert left_behind(make_record(**after)) == [says]
