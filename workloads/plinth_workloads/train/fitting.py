"""Whether a run fits its workers, told before the first step; and how many rows of a pass are best where it asks.

The glue between the estimate, the machine and the probe, so that a session has three calls.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plinth_api.run import TrainRun
from plinth_workloads.data.prepare import PreparedData, plan_training_epoch
from plinth_workloads.errors import UserError
from plinth_workloads.models.four_bits import BYTES_PER_WEIGHT
from plinth_workloads.models.load import new_model
from plinth_workloads.models.stored_size import num_stored
from plinth_workloads.objectives.objective import Objective
from plinth_workloads.train.memory import GIB, MemoryEstimate, estimate, refusal, shape_of, tokens_of_a_row, told
from plinth_workloads.train.micro_batch import heaviest_rows, with_micro_batch_size
from plinth_workloads.train.parallel import Workers
from plinth_workloads.train.progress import ProgressLog
from plinth_workloads.train.room import MemoryMeter, host_room, room_for_training

logger = logging.getLogger(__name__)

_FILLED = 0.92
"""The part of the room that a probe fills; allocators leave gaps."""


def expect_loading(run: TrainRun, workers: Workers, tokenizer: Any, start: Path | None, objective: Objective) -> None:
    """Refuse a model that is too large to be loaded, before anything of it is: every worker holds it whole at first.

    Args:
        run: The run document.
        workers: This process among the others; all of them call this together.
        tokenizer: Of the data.
        start: Folder of the model that the run starts from; None for random weights.
        objective: Says from which class.

    Raises:
        UserError: InvalidSpec, in every process, where one of them has not the memory.
    """
    if run.method.qlora is not None and run.workers.gpus:
        # Each weight goes to the GPU as it is read, in 4 bits.
        return
    each, kind = (BYTES_PER_WEIGHT, "4 bits") if run.method.qlora else (4, "float32")
    size = each * (num_stored(start) if start is not None else _num_new(run, tokenizer, objective))
    room = host_room()
    fits = workers.gather(size <= room.size)
    if not all(fits):
        more = f"raise {room.raised_by}" if room.raised_by else "use machines with more memory"
        raise UserError(
            "InvalidSpec",
            f"spec.model: its weights take {size / GIB:.2f} GiB in {kind}, and every worker loads them whole before "
            f"they are sharded, but has {room.size / GIB:.2f} of {room.what}; {more}, or take a smaller model",
        )


def _num_new(run: TrainRun, tokenizer: Any, objective: Objective) -> int:
    with torch.device("meta"):
        model = new_model(run, tokenizer, objective.auto_class, objective.implied_config(tokenizer))
    return sum(parameter.numel() for parameter in model.parameters())


def expect_memory(run: TrainRun, workers: Workers, model: Any, log: ProgressLog | None) -> MemoryEstimate:
    """What a worker needs, told in the log and the progress file.

    Args:
        run: The run document.
        workers: This process among the others; all of them call this together.
        model: Whole, in the host's memory.
        log: Where progress goes; None in all processes but the first.

    Raises:
        UserError: InvalidSpec, in every process, where one of them has not the memory that is needed at least.
    """
    on_host = workers.device.type == "cpu"
    shape = shape_of(model)
    rows = 1 if run.training.auto_micro_batch_size else run.training.micro_batch_size
    tokens = tokens_of_a_row(run, model.config)
    found = estimate(shape, run, rows=rows, tokens=tokens, device=workers.device.type)
    room = room_for_training(workers.device, model_bytes=shape.stored)
    refusals = workers.gather(refusal(found, run, room, rows=rows, on_host=on_host))
    reason = next((reason for reason in refusals if reason is not None), None)
    if reason is not None:
        raise UserError("InvalidSpec", reason)
    if log is not None:
        needed = found.needed(on_host=on_host)
        log.write("memory", **told(found, room, rows=rows, on_host=on_host))
        logger.info(
            "memory of a worker, estimated: %.2f of %.2f GiB of %s: %s",
            needed / GIB,
            room.size / GIB,
            room.what,
            found.described(),
        )
    return found


def with_fitting_passes(
    run: TrainRun,
    workers: Workers,
    data: PreparedData,
    loss: nn.Module,
    expected: MemoryEstimate,
    log: ProgressLog | None,
) -> TrainRun:
    """The run document with the rows of a pass that were found to be best, where it leaves them to the workers.

    Args:
        run: The run document.
        workers: This process among the others; all of them call this together.
        data: Gives the rows that are tried.
        loss: On its device, sharded where the run shards, not yet in data parallelism.
        expected: Says what is to come beside a pass.
        log: Where progress goes; None in all processes but the first.

    Raises:
        UserError: InvalidSpec, CudaOutOfMemory or HostOutOfMemory where not even one row fits.
    """
    if not run.training.auto_micro_batch_size:
        return run
    on_host = workers.device.type == "cpu"
    room = host_room() if on_host else room_for_training(workers.device, model_bytes=0)
    to_come = expected.optimizer + (expected.saving if on_host else 0)
    found = with_micro_batch_size(
        run,
        workers,
        loss,
        heaviest_rows(plan_training_epoch(run, data, 0), data.training_rows),
        round(_FILLED * room.size) - to_come,
        MemoryMeter(workers.device),
    )
    if log is not None:
        log.write("microBatchSize", rows=found.training.micro_batch_size)
    return found
