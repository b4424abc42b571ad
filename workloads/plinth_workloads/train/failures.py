"""From an exception in a worker to the failure that is told: which worker, in which step, by how much, what to do."""

import re

import torch
import torch.distributed as dist

from plinth_api.run import TrainRun
from plinth_workloads.errors import UserError, as_user_error
from plinth_workloads.train.metrics import memory_bytes
from plinth_workloads.train.parallel import Workers

_GIB = 1024**3
_DISTRIBUTED = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
_COLLECTIVE = re.compile(
    r"\[[^\]]*gloo/|collective operation timeout|Connection closed by peer"
    r"|NCCL (error|timeout)|Timed out waiting \d+ ?ms"
)
"""What gloo and NCCL say in a RuntimeError of no class of its own."""
_CUDA = re.compile(r"CUDA error: out of memory|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED")
_HOST = re.compile(r"DefaultCPUAllocator|can't allocate memory|Cannot allocate memory")
_TRIED = re.compile(r"[Tt]ried to allocate (?P<size>[\d.]+ \w+)")


def explained(error: BaseException, run: TrainRun, workers: Workers, step: int) -> UserError:
    """The failure to tell of an exception in this worker.

    Args:
        error: What was raised.
        run: The run document, for what could be lowered.
        workers: This process among the others.
        step: The step that was worked on.

    Returns:
        A UserError as it is; CudaOutOfMemory, HostOutOfMemory and CollectiveTimeout where the exception is of that
        kind; else UserCodeError.
    """
    where = f"rank {workers.rank} of {workers.world_size}, step {step}"
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and _CUDA.search(text)):
        return UserError("CudaOutOfMemory", f"{where}: {_cuda_memory(text)}; {_what_to_lower(run)}")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _HOST.search(text)):
        held = f"this process has held up to {_gib(memory_bytes(torch.device('cpu')))}"
        limit = run.workers.memory_bytes
        of = f" of the {_gib(limit)} of spec.compute.perWorker.memory" if limit else ""
        return UserError(
            "HostOutOfMemory",
            f"{where}: the machine's memory did not suffice{_tried(text)}; {held}{of}; raise "
            f"spec.compute.perWorker.memory, or {_what_to_lower(run)}",
        )
    if isinstance(error, _DISTRIBUTED) or (isinstance(error, RuntimeError) and _COLLECTIVE.search(text)):
        said = as_user_error(error).message
        return UserError(
            "CollectiveTimeout",
            f"{where}: lost the other workers in a collective operation ({said}); one of them hung, was slow or lost "
            "its network: its own log says why",
        )
    return as_user_error(error)


def _cuda_memory(text: str) -> str:
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory if reserved else 0
    of = f" of {_gib(total)}" if total else ""
    return (
        f"the GPU's memory did not suffice{_tried(text)}; PyTorch had allocated {_gib(allocated)} and reserved "
        f"{_gib(reserved)}{of}"
    )


def _tried(text: str) -> str:
    found = _TRIED.search(text)
    return f" for another {found['size']}" if found else ""


def _what_to_lower(run: TrainRun) -> str:
    training = run.training
    return (
        f"lower spec.training.microBatchSize (now {training.micro_batch_size}) or spec.training.sequenceLength (now "
        f"{training.sequence_length}), set spec.training.activationCheckpointing, or raise "
        f"spec.compute.parallelism.shard (now {run.workers.shard})"
    )


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"
