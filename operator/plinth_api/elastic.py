"""How many workers an elastic job can train with, and the run document for one of those numbers. Pure.

The rows of a step are the same for any number of workers; only their split differs. So a number must divide them.
"""

from plinth_api.common import Compute
from plinth_api.objective_rules import FACTS
from plinth_api.resolve import largest_divisor
from plinth_api.run import TrainRun


def fewest_workers(compute: Compute) -> int:
    """The fewest workers that a job trains with."""
    return compute.elastic.min_workers if compute.elastic else compute.workers


def most_workers(compute: Compute) -> int:
    """The most workers that a job trains with."""
    return compute.elastic.max_workers if compute.elastic else compute.workers


def possible_numbers(run: TrainRun) -> tuple[int, ...]:
    """The numbers of workers that a run can train with, the fewest first; one for a run that is not elastic."""
    elastic, rows = run.workers.elastic, run.training.global_batch_size
    if elastic is None:
        return (run.workers.num_workers,)
    return tuple(count for count in range(elastic.min_workers, elastic.max_workers + 1) if rows % count == 0)


def with_workers(run: TrainRun, count: int) -> TrainRun:
    """The run on another number of workers: what was spread over all of them is again.

    Args:
        run: A run whose weights are spread in one way, in parts or in copies.
        count: One of its `possible_numbers`.
    """
    workers, training = run.workers, run.training
    rows = training.global_batch_size // count
    in_one_pass = training.auto_micro_batch_size or FACTS[run.objective].compares_rows
    passes = largest_divisor(rows, rows if in_one_pass else training.micro_batch_size)
    sharded = workers.shard == workers.num_workers
    spread = {"num_workers": count, "shard": count if sharded else 1, "replicate": 1 if sharded else count}
    return run.model_copy(
        update={
            "workers": workers.model_copy(update=spread),
            "training": training.model_copy(update={"micro_batch_size": passes}),
        }
    )
