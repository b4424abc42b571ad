"""What the task of a FineTuneJob means for the rest of the job, where it trains no language model."""

from collections.abc import Iterator
from typing import cast, get_args

from plinth_api.base import wire_name
from plinth_api.errors import Problem
from plinth_api.fine_tune_job import FineTuneJob
from plinth_api.objective_rules import FACTS, row_problems
from plinth_api.parse import Job
from plinth_api.run import DataTask


def task_of(job: FineTuneJob) -> str:
    """The key of spec.task: tokenClassification."""
    field = next(name for name, value in job.spec.task if value is not None)
    return wire_name(type(job.spec.task), field)


def data_task(job: Job) -> DataTask:
    """How a job's examples are read."""
    if not isinstance(job, FineTuneJob):
        return "pretrain"
    task = task_of(job)
    # What is not supported yet is refused elsewhere, and has to be resolved until then.
    return cast(DataTask, task) if task in get_args(DataTask) else "completion"


def task_problems(job: FineTuneJob) -> Iterator[Problem]:
    """What contradicts a task that has an objective of its own."""
    task = task_of(job)
    facts = FACTS.get(task)
    if facts is None:
        return
    for column in job.spec.data.columns.to_wire() if job.spec.data.columns else ():
        if column not in facts.columns:
            usual = ", ".join(sorted(facts.columns))
            yield Problem(f"spec.data.columns.{column}", f"task {task} reads {usual}; leave {column} out")
    if job.spec.method.num_virtual_tokens and not facts.takes_virtual_tokens:
        name = job.spec.method.name
        yield Problem(
            f"spec.method.{name}",
            f"has no meaning for task {task}: virtual tokens stand before a model that generates text; use lora, dora, "
            "ia3 or full",
        )
    yield from row_problems(job, f"task {task}")
