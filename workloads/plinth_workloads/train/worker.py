"""The glue to Ray Train: the only module that knows it. Starts the workers and runs the session in each of them."""

import itertools
import logging
import os
import threading
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from plinth_api.quantity import whole_cpus
from plinth_api.run import TrainRun
from plinth_workloads.errors import UserError
from plinth_workloads.train.elastic import Pace, WorkersLost, train_elastically
from plinth_workloads.train.progress import end_of_progress, told_end

_OBJECT_STORE_BYTES = 100 * 1024 * 1024
"""Rows and weights do not travel through Ray's object store, so it can be small."""

_MOST_CHARACTERS = 1000
"""Of what Ray says of a death."""


def train_with_ray(run: TrainRun, asked: threading.Event, pace: Pace | None = None) -> None:
    """Train on the Ray cluster that `join_ray` has joined, and leave it.

    Args:
        run: The run document.
        asked: Set once somebody has asked this process to save and stop.
        pace: Of an elastic run.

    Raises:
        UserError: The first that a worker raised.
    """
    cluster = _RayCluster(run)
    try:
        if run.workers.elastic is None:
            cluster.train(run)
        else:
            train_elastically(run, cluster, asked, pace)
    finally:
        ray.shutdown()


class _RayCluster:
    """The Ray cluster that this process has joined, which is the run's own."""

    def __init__(self, run: TrainRun) -> None:
        self._per_worker = _resources_per_worker(run)
        self._starts = itertools.count()
        self._places: list[PlacementGroup] = []

    def ask_for(self, more: int) -> None:
        """Let there be room for so many workers more than train, where Ray has an autoscaler.

        By placement groups that wait: `request_resources` is Ray Train's own, whose next word replaces ours. Once they
        have their places no node of theirs is idle, and none is taken away.
        """
        for place in self._places:
            remove_placement_group(place)
        self._places = [placement_group([self._per_worker]) for _ in range(more)]

    def room(self) -> int:
        """How many workers the nodes that are alive have room for, those that train included."""
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(
            min(int(offered.get(name, 0) // amount) for name, amount in self._per_worker.items()) for offered in alive
        )

    def train(self, run: TrainRun) -> None:
        """Train on a fixed number of workers.

        Where workers are lost that had told their end before, it is as they told it: a pod that must go goes when they
        have saved, and Ray may see that first.
        """
        folder = Path(run.work_dir)
        offset = end_of_progress(folder)
        try:
            self._fit(run)
        except WorkersLost:
            if told_end(folder, offset) not in ("stopped", "model"):
                raise

    def _fit(self, run: TrainRun) -> None:
        trainer = TorchTrainer(
            _train_loop_per_worker,
            train_loop_config={"run": run.model_dump_json(by_alias=True)},
            torch_config=TorchConfig(backend="nccl" if run.workers.gpus else "gloo", timeout_s=3600),
            scaling_config=ScalingConfig(
                num_workers=run.workers.num_workers,
                use_gpu=run.workers.gpus > 0,
                resources_per_worker=self._per_worker,
            ),
            run_config=RunConfig(
                # A name that Ray Train knows would go on with what it remembers of it.
                name=f"{run.uid}-{next(self._starts)}",
                storage_path=f"{run.work_dir}/ray",
                failure_config=FailureConfig(
                    max_failures=0,
                    # Whoever runs attempts decides whether there is another one, after a preemption too.
                    max_preemption_failures=0,
                    # A node may be gone before Ray knows: an elastic run counts anew, where workers do not start.
                    controller_failure_limit=-1 if run.workers.elastic is None else 0,
                ),
            ),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            raise _cause(error) from error
        except (OutOfMemoryError, RayActorError) as error:
            # Of what drives the workers, in the head: another start may find room.
            raise WorkersLost("UserCodeError", f"Ray Train's controller ended: {type(error).__name__}") from error
        except TrainingFailedError as error:
            failure = WorkersLost if isinstance(error, ControllerError) else UserError
            raise failure("UserCodeError", f"Ray Train failed: {str(error).splitlines()[-1]}") from error


def _resources_per_worker(run: TrainRun) -> dict[str, float]:
    """All that one pod offers, so that no two workers share one."""
    gpus = {"GPU": run.workers.gpus} if run.workers.gpus else {}
    return {"CPU": whole_cpus(run.workers.cpus), **gpus}


def join_ray(run: TrainRun) -> None:
    """Join the Ray cluster of $RAY_ADDRESS, else start one on this machine that holds the run's workers."""
    # Ray Train would wait for the deadline of a node that is drained; our workers are told by their pods, and save.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if "RAY_ADDRESS" not in os.environ:
        # More workers than cores is slow, not wrong: the same YAML runs on any laptop.
        options |= {
            "address": "local",
            "num_cpus": max(os.cpu_count() or 1, run.workers.num_workers * whole_cpus(run.workers.cpus)),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    ray.init(**options)


def _train_loop_per_worker(config: dict[str, str]) -> None:
    # Imported here: the driver, which only waits, would hold transformers and the rest in memory for nothing.
    from plinth_workloads.train.session import run_training

    run_training(TrainRun.model_validate_json(config["run"]))


def _cause(error: WorkerGroupError) -> Exception:
    """The failure to tell: a UserError of any worker before a consequence of it in the others."""
    failures: list[BaseException] = list(error.worker_failures.values())
    sentences = [sentence for sentence in map(_sentence_of, failures) if sentence is not None]
    for sentence in sentences:
        if sentence.reason != "CollectiveTimeout":
            return sentence
    deaths = [death for death in map(_death_of, failures) if death is not None]
    # With the name: the text ends in advice, and what is read from it is the name.
    for death in sorted(deaths, key=lambda death: not isinstance(death, OutOfMemoryError)):
        text = " ".join(str(death).split())[:_MOST_CHARACTERS]
        lost = UserError if isinstance(death, OutOfMemoryError) else WorkersLost
        return lost("UserCodeError", f"a worker failed: ray.exceptions.{type(death).__name__}: {text}")
    without = [failure for failure in failures if _sentence_of(failure) is None]
    if sentences and not without:
        return sentences[0]
    first = without[0] if without else error
    said = str(first).strip().splitlines() or [type(first).__name__]
    return UserError("UserCodeError", f"a worker failed: {said[-1]}")


def _sentence_of(failure: BaseException) -> UserError | None:
    """The UserError that a worker raised, which Ray wraps; None for any other failure."""
    seen: BaseException | None = failure
    while seen is not None and not isinstance(seen, UserError):
        seen = seen.__cause__
    return seen


def _death_of(failure: BaseException) -> RayError | None:
    """How a worker's process died, of which errors in the others are a consequence; None where it did not."""
    seen = getattr(failure, "health_check_failure", failure)
    return seen if isinstance(seen, RayActorError | OutOfMemoryError) else None
