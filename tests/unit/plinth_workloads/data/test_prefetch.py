import threading

import pytest
import torch

from plinth_workloads.data.loader import Batch, BatchLoader
from plinth_workloads.data.prefetch import PrefetchingLoader


class TenRows:
    """Nothing is read from them: their numbers are enough."""

    num_rows = 10

    def row(self, index):
        return []


class Numbered:
    """Batches that hold the numbers of their rows, and know when they were made."""

    def __init__(self, broken=()):
        self.broken = broken
        self.made = threading.Semaphore(0)

    def batch(self, rows, draws):
        numbers = [row for _, _, row in draws]
        if set(numbers) & set(self.broken):
            raise OSError(f"row {numbers[0]}")
        self.made.release()
        return Batch({"ids": torch.tensor(numbers)}, len(rows), len(rows))


def make_loader(rows, prefetching=True):
    loader = BatchLoader(rows, lambda epoch: TenRows(), global_batch_size=2, micro_batch_size=1)
    return PrefetchingLoader(loader, pin_memory=False) if prefetching else loader


def steps_of(loader, count):
    return [[batch.inputs["ids"].item() for batch in loader.next_step()] for _ in range(count)]


def test_it_gives_what_the_loader_gives_and_is_where_that_would_be():
    ahead, plain = make_loader(Numbered()), make_loader(Numbered(), prefetching=False)
    for _ in range(12):  # over the ends of two epochs
        assert steps_of(ahead, 1) == steps_of(plain, 1)
        assert ahead.state_dict() == plain.state_dict()


def test_the_next_step_is_made_before_anybody_asks():
    rows = Numbered()
    make_loader(rows).next_step()
    assert all(rows.made.acquire(timeout=30) for _ in range(4))


def test_what_lies_ready_is_read_again_by_a_run_that_goes_on():
    first, second = make_loader(Numbered()), make_loader(Numbered())
    steps_of(first, 3)
    second.load_state_dict(first.state_dict())
    assert steps_of(second, 2) == steps_of(first, 2) == [[6, 7], [8, 9]]


def test_going_back_forgets_what_lies_ready():
    loader = make_loader(Numbered())
    steps_of(loader, 3)
    loader.load_state_dict({"epoch": 0, "row": 2})
    assert steps_of(loader, 1) == [[2, 3]]


def test_steps_are_skipped_from_the_last_one_that_was_handed_out():
    loader = make_loader(Numbered())
    steps_of(loader, 1)
    loader.skip_steps(2)
    assert loader.state_dict() == {"epoch": 0, "row": 6}
    assert steps_of(loader, 1) == [[6, 7]]


def test_an_error_is_raised_at_its_step_and_can_be_skipped():
    loader = make_loader(Numbered(broken=[4]))
    assert steps_of(loader, 2) == [[0, 1], [2, 3]]
    for _ in range(2):
        with pytest.raises(OSError, match="row 4"):
            loader.next_step()
    loader.skip_steps(1)
    assert steps_of(loader, 1) == [[6, 7]]
