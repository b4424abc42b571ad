"""What Ray Train says of failed workers, as the failure to tell. Ray's own code makes the errors, without a cluster."""

import pickle
import time

from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2._internal.execution.worker_group.thread_runner import ThreadRunner

from plinth_workloads.errors import UserError
from plinth_workloads.train.worker import _cause

MISSING = UserError("DatasetNotFound", "file:///corpus.jsonl matches no file")


def raise_missing():
    raise MISSING


def raise_consequence():
    raise RuntimeError("Connection closed by peer\nwhile waiting for rank 0")


def ray_error(*targets):
    """The error of `fit()` where the worker of each rank runs its target, sent to the driver as Ray sends it."""
    statuses = {rank: WorkerStatus(running=False, error=error_of(target)) for rank, target in enumerate(targets)}
    return pickle.loads(pickle.dumps(WorkerGroupPollStatus(worker_statuses=statuses).get_worker_group_error()))


def error_of(target):
    runner = ThreadRunner()
    runner.run(target)
    deadline = time.monotonic() + 10
    while runner.get_error() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return runner.get_error()


def test_the_sentence_of_a_worker_is_told():
    found = _cause(ray_error(raise_missing))
    assert isinstance(found, UserError)
    assert (found.reason, found.message) == (MISSING.reason, MISSING.message)


def test_a_sentence_of_any_worker_comes_before_a_consequence_in_the_first():
    found = _cause(ray_error(raise_consequence, raise_missing))
    assert (found.reason, found.message) == (MISSING.reason, MISSING.message)


def test_a_failure_without_a_sentence_gives_its_last_line():
    found = _cause(ray_error(raise_consequence))
    assert (found.reason, found.message) == ("UserCodeError", "a worker failed: while waiting for rank 0")
