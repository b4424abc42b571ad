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
        size = _search(_Probe(run, workers, loss, batch_of, room, meter), found)
        found.remember(size)
    return run.model_copy(update={"training": run.training.model_copy(update={"micro_batch_size": size})})


@dataclass(frozen=True, slots=True)
class _Probe:
    """Tries passes; attributes as the arguments of `with_micro_batch_size`."""

    run: TrainRun
    workers: Workers
    loss: nn.Module
    batch_of: Callable[[int], Batch]
    room: int
    meter: MemoryMeter

    def try_rows(self, rows: int) -> Trial | UserError:
        """Memory and time of a pass of some rows, or why it did not fit."""
        moved = self.batch_of(rows).to(self.workers.device)
        buffers = [(buffer, buffer.detach().clone()) for buffer in self.loss.buffers()]
        held, seconds = self.meter.reset(), []
        try:
            for _ in range(1 + _TIMED_PASSES):
                seconds.append(self._time_pass(moved))
        except (RuntimeError, MemoryError) as error:
            failure = explained(error, self.run, self.workers, 0)
            if failure.reason not in ("CudaOutOfMemory", "HostOutOfMemory"):
                raise
            return UserError(failure.reason, f"{self._even_one} {failure.message}")
        finally:
            self.loss.zero_grad(set_to_none=True)
            for buffer, before in buffers:
                buffer.copy_(before)
        # The first pass may compile.
        return Trial(rows, held, self.meter.peak(), min(seconds[1:]))

    def _time_pass(self, batch: Batch) -> float:
        devices = [self.workers.device] if self.workers.device.type == "cuda" else []
        started = time.perf_counter()
        with torch.random.fork_rng(devices=devices):
            with autocast(self.run, self.workers):
                total = self.loss(**batch.inputs)
            total.backward()
        if devices:
            torch.cuda.synchronize(self.workers.device)
        return time.perf_counter() - started

    def too_large(self, tried: Trial) -> UserError:
        """Why a pass of one row, which the device could do, cannot be trained with."""
        on_gpu = self.workers.device.type == "cuda"
        more = "use GPUs with more memory" if on_gpu else "raise spec.compute.perWorker.memory"
        return UserError(
            "InvalidSpec",
            f"{self._even_one} its pass takes {tried.peak / GIB:.2f} GiB, and beside the optimizer there are "
            f"{max(0, self.room) / GIB:.2f}; set spec.training.activationCheckpointing to full, lower "
            f"spec.training.sequenceLength, raise spec.compute.parallelism.shard (now {self.run.workers.shard}), or "
            f"{more}",
        )

    @property
    def _even_one(self) -> str:
        length = self.run.training.sequence_length
        return f"spec.training.microBatchSize: even one row of {length} tokens does not fit:"


def _search(probe: _Probe, found: "_Found") -> int:
    workers = probe.workers
    worker_rows = probe.run.training.global_batch_size // workers.data_size
    trials: list[Trial] = []
    while True:
        # Sizes follow from the seconds that all agree on; whether one fits may differ.
        proposed = workers.gather(next_size(worker_rows, trials, probe.room))
        if None in proposed:
            return best_size(trials)
        size = proposed[0]
        assert size is not None
        if trials:
            found.remember(best_size(trials))
        tried = probe.try_rows(size)
        if isinstance(tried, Trial) and not trials and tried.peak > probe.room:
            tried = probe.too_large(tried)
        everyone = workers.gather(tried)
        failure = next((other for other in everyone if isinstance(other, UserError)), None)
        if failure is not None and trials:
            return best_size(trials)
        if failure is not None:
            raise failure
        assert isinstance(tried, Trial)
        trials.append(replace(tried, seconds=max(other.seconds for other in everyone if isinstance(other, Trial))))


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
