"""Which rows of a pass are tried, chosen and remembered, on a device of which only memory and time are made up."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from plinth_workloads.data.loader import Batch
from plinth_workloads.data.packing import Segment
from plinth_workloads.errors import UserError
from plinth_workloads.train import micro_batch
from plinth_workloads.train.memory import GIB
from plinth_workloads.train.micro_batch import Trial, best_size, heaviest_rows, next_size, with_micro_batch_size
from training import ALONE, make_train_run, open_alone, weights_of

AMPLE = 10**9


def trials(*seconds_a_row, held=100, row=10):
    return [Trial(size, held, held + size * row, size * each) for size, each in seconds_a_row]


@pytest.mark.parametrize(
    ("worker_rows", "tried", "room", "size"),
    [
        pytest.param(8, [], AMPLE, 1, id="one row first"),
        pytest.param(8, trials((1, 1.0)), AMPLE, 2, id="twice as many"),
        pytest.param(12, trials((1, 1.0), (2, 0.8)), AMPLE, 3, id="the next divisor that is much larger"),
        pytest.param(12, trials((1, 1.0), (2, 0.8), (3, 0.6)), AMPLE, 6, id="a divisor that is hardly larger is not"),
        pytest.param(7, trials((1, 1.0)), AMPLE, 7, id="a prime"),
        pytest.param(4, trials((2, 1.0), (4, 0.5)), AMPLE, None, id="all rows"),
        pytest.param(8, trials((1, 1.0), (2, 0.98)), AMPLE, None, id="hardly faster"),
        pytest.param(8, trials((1, 1.0), (2, 1.1)), AMPLE, None, id="slower"),
        pytest.param(8, trials((1, 1.0), (2, 0.8)), 140, 4, id="just fits"),
        pytest.param(8, trials((1, 1.0), (2, 0.8)), 139, None, id="just does not fit"),
    ],
)
def test_the_next_size(worker_rows, tried, room, size):
    assert next_size(worker_rows, tried, room) == size


def test_the_fastest_is_chosen_and_of_equals_the_smallest():
    assert best_size(trials((1, 1.0), (2, 0.6), (4, 0.7))) == 2
    assert best_size(trials((1, 1.0), (2, 1.0))) == 1


class Plan:
    """Rows of one document each, of given lengths."""

    def __init__(self, *lengths):
        self.lengths, self.num_rows = lengths, len(lengths)

    def row(self, index):
        return [Segment(index, 0, self.lengths[index])]


class Documents:
    """A batcher that says which documents it was given."""

    def batch(self, rows, draws):
        return Batch({"documents": torch.tensor([row[0].document for row in rows])}, 0, 0)


def test_the_longest_rows_are_tried_and_again_where_there_are_few():
    batch_of = heaviest_rows(Plan(3, 9, 1, 7), Documents())
    assert batch_of(2).inputs["documents"].tolist() == [1, 3]
    assert batch_of(6).inputs["documents"].tolist() == [1, 3, 0, 2, 1, 3]


class Passes(nn.Module):
    """A loss that counts the passes of each size, and fails from a size on."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))
        self.sizes, self.fails_at = [], fails_at

    def forward(self, rows):
        size = len(rows)
        if self.fails_at is not None and size >= self.fails_at:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        self.sizes.append(size)
        self.seen += 1
        return self.weight * torch.rand(()) * rows.sum()


@dataclass
class Meter:
    """Ten bytes a row beside a hundred."""

    loss: Passes
    row: int = 10
    resets: list[int] = field(default_factory=list)

    def reset(self):
        self.resets.append(len(self.loss.sizes))
        return 100

    def peak(self):
        return 100 + self.row * self.loss.sizes[-1]


def rows_of(count):
    return Batch({"rows": torch.ones(count)}, count, count)


@pytest.fixture
def faster_in_groups(monkeypatch):
    """A clock on which a pass takes as long whatever its rows."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(micro_batch.time, "perf_counter", lambda: float(next(ticks)))


def auto_run(folder, **training):
    return make_train_run(folder, training={"microBatchSize": "auto", **training})


def find(run, loss, *, room=AMPLE, row=10):
    return with_micro_batch_size(run, ALONE, loss, rows_of, room, Meter(loss, row)).training.micro_batch_size


@pytest.mark.usefixtures("faster_in_groups")
def test_sizes_grow_while_rows_get_faster_and_nothing_is_left_behind(tmp_path):
    loss = Passes()
    drawn = torch.random.get_rng_state()
    assert find(auto_run(tmp_path), loss) == 8
    assert loss.sizes == [1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8]
    assert loss.weight.grad is None
    assert loss.seen == 0
    assert torch.equal(torch.random.get_rng_state(), drawn)


@pytest.mark.usefixtures("faster_in_groups")
def test_a_size_that_is_predicted_not_to_fit_is_never_tried(tmp_path):
    loss = Passes()
    assert find(auto_run(tmp_path), loss, room=145) == 4
    assert max(loss.sizes) == 4


@pytest.mark.usefixtures("faster_in_groups")
def test_a_pass_that_fails_for_memory_ends_the_search_below_it(tmp_path):
    assert find(auto_run(tmp_path), Passes(fails_at=4)) == 2


@pytest.mark.usefixtures("faster_in_groups")
def test_a_retry_finds_what_was_found(tmp_path):
    run = auto_run(tmp_path)
    assert find(run, Passes()) == 8
    again = Passes()
    assert find(run, again) == 8
    assert again.sizes == []
    assert find(auto_run(tmp_path, sequenceLength=128), again) == 8
    assert again.sizes, "another length is another search"


@pytest.mark.usefixtures("faster_in_groups")
def test_an_attempt_that_died_of_a_size_is_followed_by_one_that_does_not_try_it(tmp_path):
    class Killed(Passes):
        def forward(self, rows):
            if len(rows) == 4:
                raise KeyboardInterrupt
            return super().forward(rows)

    run = auto_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        find(run, Killed())
    again = Passes()
    assert find(run, again) == 2
    assert again.sizes == []


def test_one_row_that_does_not_fit_is_a_sentence_with_the_numbers(tmp_path):
    run = auto_run(tmp_path)
    with pytest.raises(UserError) as error:
        find(run, Passes(), room=GIB, row=2 * GIB)
    assert (error.value.reason, error.value.message) == (
        "InvalidSpec",
        "spec.training.microBatchSize: even one row of 64 tokens does not fit: its pass takes 2.00 GiB, and beside the "
        "optimizer there are 1.00; set spec.training.activationCheckpointing to full, lower "
        "spec.training.sequenceLength, raise spec.compute.parallelism.shard (now 1), or raise "
        "spec.compute.perWorker.memory",
    )
    with pytest.raises(UserError, match=r"even one row of 64 tokens does not fit: .* for another 9 bytes") as error:
        find(run, Passes(fails_at=1))
    assert error.value.reason == "HostOutOfMemory"


def test_an_error_that_is_not_of_memory_is_told_as_it_is(tmp_path):
    class Broken(Passes):
        def forward(self, rows):
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        find(auto_run(tmp_path), Broken())


def test_a_run_that_finds_its_passes_trains_as_one_that_was_given_them(tmp_path):
    given, _ = open_alone(make_train_run(tmp_path / "given", training={"microBatchSize": 8}))
    given.loop.train()
    found, _ = open_alone(auto_run(tmp_path / "found"))
    size = found.run.training.micro_batch_size
    (remembered,) = Path(found.run.work_dir, "cache").glob("micro-batch-*.json")
    assert json.loads(remembered.read_text()) == {"rows": size}
    assert [len(batch.inputs["labels_BT"]) for batch in found.loop._loader.next_step()] == [size] * (8 // size)
    found.loop._loader.load_state_dict({"epoch": 0, "row": 0})
    found.loop.train()
    for name, value in weights_of(given).items():
        torch.testing.assert_close(weights_of(found)[name], value, rtol=0, atol=1e-5)
