"""What is asked of Ray Train, and what it says of failed workers. Ray's own code makes the errors, no cluster runs."""

import pickle
import time
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2._internal.execution.worker_group.thread_runner import ThreadRunner
from ray.train.v2.api.exceptions import WorkerGroupError

from makers import make_pretrain_job, make_resolve_settings
from plinth_api.resolve import resolve_train_run
from plinth_workloads.errors import UserError
from plinth_workloads.train.elastic import WorkersLost
from plinth_workloads.train.progress import ProgressLog
from plinth_workloads.train.worker import _cause, _RayCluster, _resources_per_worker
from rendering import cluster_of, make
from training import make_train_run

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


MEMORY = OutOfMemoryError("Task was killed due to the node running low on memory.\nRefer to the documentation")


@pytest.mark.parametrize(
    ("deaths", "told"),
    [
        pytest.param([ActorDiedError()], "ray.exceptions.ActorDiedError: The actor died unexpectedly", id="killed"),
        pytest.param(
            [ActorDiedError(), MEMORY],
            "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory. Refer",
            id="out of memory",
        ),
    ],
)
def test_a_process_that_died_comes_before_what_that_did_to_the_others(deaths, told):
    failures = [RuntimeError("Connection closed by peer"), *(WorkerHealthCheckFailedError("it", it) for it in deaths)]
    found = _cause(WorkerGroupError("some failed", dict(enumerate(failures))))
    assert found.reason == "UserCodeError"
    assert found.message.startswith(f"a worker failed: {told}")


LOST = UserError("CollectiveTimeout", "rank 0 of 2, step 3: lost the other workers")


def raise_lost():
    raise LOST


@pytest.mark.parametrize(
    ("second", "told"),
    [
        pytest.param(raise_missing, "DatasetNotFound", id="a sentence"),
        pytest.param(raise_consequence, "UserCodeError", id="an error"),
        pytest.param(raise_lost, "CollectiveTimeout", id="nothing else"),
    ],
)
def test_a_lost_worker_is_told_only_where_no_other_says_why(second, told):
    assert _cause(ray_error(raise_lost, second)).reason == told


def test_a_process_that_died_comes_before_those_that_lost_it():
    lost = error_of(raise_lost)
    found = _cause(WorkerGroupError("some failed", {0: lost, 1: WorkerHealthCheckFailedError("it", ActorDiedError())}))
    assert found.message.startswith("a worker failed: ray.exceptions.ActorDiedError")


def test_a_failure_without_a_sentence_gives_its_last_line():
    found = _cause(ray_error(raise_consequence))
    assert (found.reason, found.message) == ("UserCodeError", "a worker failed: while waiting for rank 0")


@pytest.mark.parametrize("wanted", [{"cpus": 0}, {"cpus": "250m"}, {"cpus": "1500m"}, {"cpus": 8, "gpus": 2}], ids=str)
def test_a_worker_takes_all_that_its_pod_offers(wanted):
    compute = {"workers": 2, "perWorker": wanted}
    run = resolve_train_run(make_pretrain_job(compute=compute), make_resolve_settings(), {})
    (group,) = cluster_of(make("PretrainJob", compute=compute))["workerGroupSpecs"]
    offered = {name.removeprefix("num-")[:-1].upper(): int(number) for name, number in group["rayStartParams"].items()}
    assert _resources_per_worker(run) == offered


class LosingCluster(_RayCluster):
    """Its workers tell something, and are lost before Ray has asked them how they ended."""

    def __init__(self, run, *told):
        super().__init__(run)
        self.told = told

    def _fit(self, run):
        log = ProgressLog(Path(run.work_dir))
        for event in self.told:
            log.write(event, step=3)
        log.close()
        raise WorkersLost("UserCodeError", "a worker failed: ray.exceptions.ActorDiedError: its node was drained")


@pytest.mark.parametrize("end", ["stopped", "model"])
def test_workers_that_are_lost_after_their_end_have_ended_as_they_told(tmp_path, end):
    run = make_train_run(tmp_path)
    LosingCluster(run, "step", end).train(run)


@pytest.mark.parametrize("told", [(), ("step",), ("step", "failed")])
def test_workers_that_are_lost_before_are_lost(tmp_path, told):
    run = make_train_run(tmp_path)
    LosingCluster(run, "stopped").train(run)
    # What an earlier attempt told is not the end of this one.
    with pytest.raises(WorkersLost, match="its node was drained"):
        LosingCluster(run, *told).train(run)
