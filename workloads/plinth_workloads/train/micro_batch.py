"""How many rows of a pass are best on this device: tried from one row upwards, agreed among workers, remembered.

Enters: a loss on its device and the rows that take the most room. Leaves: the run document with the number found. A
pass that is predicted not to fit is never tried, as a container's limit kills without a word. What is tried is written
down before: an attempt that dies of it is followed by one that does not try it again.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from plinth_api.run import TrainRun
from plinth_workloads.data.loader import Batch, Batcher, Draw
from plinth_workloads.data.packing import EpochPlan
from plinth_workloads.errors import UserError
from plinth_workloads.train.failures import explained
from plinth_workloads.train.memory import GIB
from plinth_workloads.train.parallel import Workers, autocast
from plinth_workloads.train.room import MemoryMeter, host_room

_LEAST_GROWTH = 1.5
"""How many times larger each size tried is, so that few are tried."""
_LEAST_GAIN = 0.03
"""A larger pass must make a row so much faster to be worth its memory; less is noise."""
_TIMED_PASSES = 2
_LOOKED_AT = 4096
"""Rows among which the longest are searched."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A size that was tried and fits.

    Attributes:
        rows: Of the pass.
        held: Bytes before the pass.
        peak: Most bytes during the pass.
        seconds: Of a pass, in the slowest worker.
    """

    rows: int
    held: int
    peak: int
    seconds: float


def next_size(worker_rows: int, trials: Sequence[Trial], room: int) -> int | None:
    """The size to try next; None where the search is over.

    A pass of more rows takes at most its share more: what does not grow with rows is counted as if it did.

    Args:
        worker_rows: Rows of a worker in one optimizer step, which every size divides.
        trials: What was tried, smallest first.
        room: Bytes that a pass and everything before it may take.
    """
    if not trials:
        return 1
    last = trials[-1]
    if len(trials) > 1 and last.seconds / last.rows > (1 - _LEAST_GAIN) * trials[-2].seconds / trials[-2].rows:
        return None
    larger = (
        size
        for size in range(last.rows + 1, worker_rows + 1)
        if worker_rows % size == 0 and size >= _LEAST_GROWTH * last.rows
    )
    size = next(larger, None)
    if size is None:
        return None
    return size if last.held + (last.peak - last.held) * size / last.rows <= room else None


def best_size(trials: Sequence[Trial]) -> int:
    """The size with the least time a row."""
    return min(trials, key=lambda trial: trial.seconds / trial.rows).rows


def heaviest_rows(plan: EpochPlan, rows: Batcher) -> Callable[[int], Batch]:
    """Makes a batch of the longest rows of a plan, or of the first ones of a very long one, by how many there are."""
    looked_at = range(min(plan.num_rows, _LOOKED_AT))
    lengths = {index: sum(segment.stop - segment.start for segment in plan.row(index)) for index in looked_at}
    longest = sorted(looked_at, key=lambda index: -lengths[index])

    def batch(count: int) -> Batch:
        chosen = [longest[index % len(longest)] for index in range(count)]
        draws: list[Draw] = [(0, 0, index) for index in chosen]
        return rows.batch([plan.row(index) for index in chosen], draws)

    return batch


def with_micro_batch_size(
    run: TrainRun,
    workers: Workers,
    loss: nn.Module,
    batch_of: Callable[[int], Batch],
    room: int,
    meter: MemoryMeter,
) -> TrainRun:
    """The run document with the rows of a pass that are best here.

    Args:
        run: Says how many rows a worker has in a step.
        workers: All of them call this together and get the same.
        loss: On its device, sharded where the run shards, not yet in data parallelism. It is left as it was.
        batch_of: Makes a batch of so many rows, the largest there are.
        room: Bytes that this process may hold during a pass: without what the optimizer is still to take.
        meter: Of this process's memory.

    Raises:
        UserError: InvalidSpec, CudaOutOfMemory or HostOutOfMemory where not even one row fits.
    """
    found = _Found(run, workers)
    size = found.recall()
    if size is None:
        size = _search(run, workers, loss, batch_of, room, meter, found)
        found.remember(size)
    return run.model_copy(update={"training": run.training.model_copy(update={"micro_batch_size": size})})


def _search(
    run: TrainRun,
    workers: Workers,
    loss: nn.Module,
    batch_of: Callable[[int], Batch],
    room: int,
    meter: MemoryMeter,
    found: "_Found",
) -> int:
    worker_rows = run.training.global_batch_size // run.workers.num_workers
    trials: list[Trial] = []
    while True:
        # Sizes follow from the seconds that all agree on; whether one fits may differ.
        proposed = workers.gather(next_size(worker_rows, trials, room))
        if None in proposed:
            return best_size(trials)
        size = proposed[0]
        assert size is not None
        if trials:
            found.remember(best_size(trials))
        tried = _try(run, workers, loss, batch_of(size), size, meter)
        if isinstance(tried, Trial) and not trials and tried.peak > room:
            tried = _too_large(run, workers, tried, room)
        everyone = workers.gather(tried)
        failure = next((other for other in everyone if isinstance(other, UserError)), None)
        if failure is not None and trials:
            return best_size(trials)
        if failure is not None:
            raise failure
        assert isinstance(tried, Trial)
        trials.append(replace(tried, seconds=max(other.seconds for other in everyone if isinstance(other, Trial))))


def _try(
    run: TrainRun, workers: Workers, loss: nn.Module, batch: Batch, rows: int, meter: MemoryMeter
) -> Trial | UserError:
    """Memory and time of a pass of some rows, or why it did not fit."""
    moved = batch.to(workers.device)
    buffers = [(buffer, buffer.detach().clone()) for buffer in loss.buffers()]
    devices = [workers.device] if workers.device.type == "cuda" else []
    held, seconds = meter.reset(), []
    try:
        with torch.random.fork_rng(devices=devices):
            for _ in range(1 + _TIMED_PASSES):
                started = time.perf_counter()
                with autocast(run, workers):
                    total = loss(**moved.inputs)
                total.backward()
                del total
                if devices:
                    torch.cuda.synchronize(workers.device)
                seconds.append(time.perf_counter() - started)
    except (RuntimeError, MemoryError) as error:
        failure = explained(error, run, workers, 0)
        if failure.reason not in ("CudaOutOfMemory", "HostOutOfMemory"):
            raise
        return UserError(failure.reason, f"{_even_one(run)} {failure.message}")
    finally:
        loss.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(before)
    # The first pass may compile.
    return Trial(rows, held, meter.peak(), min(seconds[1:]))


def _even_one(run: TrainRun) -> str:
    return f"spec.training.microBatchSize: even one row of {run.training.sequence_length} tokens does not fit:"


def _too_large(run: TrainRun, workers: Workers, tried: Trial, room: int) -> UserError:
    more = "use GPUs with more memory" if workers.device.type == "cuda" else "raise spec.compute.perWorker.memory"
    return UserError(
        "InvalidSpec",
        f"{_even_one(run)} its pass takes {tried.peak / GIB:.2f} GiB, and beside the optimizer there are "
        f"{max(0, room) / GIB:.2f}; set spec.training.activationCheckpointing to full, lower "
        f"spec.training.sequenceLength, raise spec.compute.parallelism.shard (now {run.workers.shard}), or {more}",
    )


class _Found:
    """What an earlier attempt of the run has found on such hardware, in its work folder; the first worker's counts."""

    def __init__(self, run: TrainRun, workers: Workers) -> None:
        self._workers = workers
        described = [
            run.model.to_wire(),
            run.method.to_wire(),
            [run.objective, run.objective_settings],
            run.training.to_wire(),
            run.workers.to_wire(),
            sorted(set(workers.gather(_hardware(workers.device)))),
            torch.__version__,
        ]
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
        self._file = Path(run.work_dir) / "cache" / f"micro-batch-{key}.json"

    def recall(self) -> int | None:
        """The rows of a pass, None where nothing is known."""
        size = None
        if self._workers.is_first and self._file.exists():
            size = int(json.loads(self._file.read_text())["rows"])
        return self._workers.gather(size)[0]

    def remember(self, rows: int) -> None:
        """Write down what fits and is best so far."""
        if self._workers.is_first:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(".tmp")
            partial.write_text(json.dumps({"rows": rows}))
            partial.replace(self._file)


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} {properties.total_memory}"
    return f"{platform.machine()} {platform.processor()} {host_room().size}"
