"""How many workers an elastic job can train with, and its run document for one of them."""

import pytest

from plinth_api.common import Elastic
from plinth_api.elastic import possible_numbers, with_workers
from training import make_train_run


def elastic_run(folder, *, workers=2, bounds=(1, 4), shard=1, **training):
    spec = {"compute": {"workers": workers, "parallelism": {"shard": shard}}, "training": training}
    run = make_train_run(folder, **spec)
    elastic = Elastic(min_workers=bounds[0], max_workers=bounds[1])
    return run.model_copy(update={"workers": run.workers.model_copy(update={"elastic": elastic})})


@pytest.mark.parametrize(
    ("rows", "bounds", "numbers"),
    [(12, (1, 4), (1, 2, 3, 4)), (8, (2, 8), (2, 4, 8)), (8, (3, 3), ()), (8, (4, 4), (4,))],
)
def test_a_number_of_workers_shares_a_steps_rows_equally(tmp_path, rows, bounds, numbers):
    run = elastic_run(tmp_path, bounds=bounds, globalBatchSize=rows, steps=2)
    assert possible_numbers(run) == numbers


def test_a_job_that_is_not_elastic_has_one_number(tmp_path):
    assert possible_numbers(make_train_run(tmp_path, compute={"workers": 2})) == (2,)


@pytest.mark.parametrize(("shard", "spread"), [(1, (1, 3)), (2, (3, 1))])
def test_what_is_spread_over_all_workers_is_spread_over_the_new_number(tmp_path, shard, spread):
    run = elastic_run(tmp_path, shard=shard, globalBatchSize=12, steps=2)
    three = with_workers(run, 3)
    assert (three.workers.num_workers, three.workers.tensor) == (3, 1)
    assert (three.workers.shard, three.workers.replicate) == spread
    assert three.workers.elastic == run.workers.elastic
    assert with_workers(run, 2) == run


def test_a_pass_is_no_larger_than_the_one_that_was_asked_for(tmp_path):
    run = elastic_run(tmp_path, workers=3, globalBatchSize=12, microBatchSize=4, steps=2)
    assert {n: with_workers(run, n).training.micro_batch_size for n in (1, 2, 3, 4)} == {1: 4, 2: 3, 3: 4, 4: 3}


def test_rows_that_are_compared_stay_in_one_pass(tmp_path):
    run = elastic_run(tmp_path, globalBatchSize=12, microBatchSize=2, steps=2)
    run = run.model_copy(update={"objective": "contrastiveText"})
    assert {n: with_workers(run, n).training.micro_batch_size for n in (1, 2, 4)} == {1: 12, 2: 6, 4: 3}
