"""The processes that train together, and how a model is spread over them.

Runs the same under plain python (one process), torchrun (its environment variables) and Ray Train (which has made the
process group already).
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from plinth_api.run import TrainRun
from plinth_workloads.errors import UserError
from plinth_workloads.train.tensor_parallel import split_layers

_T = TypeVar("_T")
_TIMEOUT = timedelta(minutes=60)
"""Processes wait for each other while one of them downloads a model or tokenizes the data."""


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among those that train together.

    Attributes:
        control_group: A gloo group for small CPU values, so that no decision waits for the GPU; None when alone.
        tensor: How many neighbours by rank hold each layer together, and read the same rows.
    """

    rank: int
    world_size: int
    device: torch.device
    control_group: dist.ProcessGroup | None
    tensor: int = 1

    @property
    def data_rank(self) -> int:
        """Which share of the rows this process reads."""
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        """How many shares of the rows there are."""
        return self.world_size // self.tensor

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports and registers."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes, in double precision."""
        if self.control_group is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control_group)
        return [float(value) for value in total]

    def sum_tensor(self, value: torch.Tensor) -> torch.Tensor:
        """A device tensor summed over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: _T) -> list[_T]:
        """The value of every process, by rank."""
        if self.control_group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control_group)
        return values

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.sum(0.0)

    def with_own_group(self) -> "Workers":
        """The same processes for another thread, whose calls must not meet those of this one in one group."""
        if self.control_group is None:
            return self
        return dataclasses.replace(self, control_group=_control_group())


@contextlib.contextmanager
def join_workers(run: TrainRun) -> Iterator[Workers]:
    """This process's place among the workers; leaves a process group that it made itself.

    Raises:
        UserError: InvalidSpec where the number of processes is not the one that the run document asks for.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    own_group = world_size > 1 and not dist.is_initialized()
    if own_group:
        dist.init_process_group(_backend(run), timeout=_TIMEOUT)
    try:
        yield _workers(run)
    finally:
        if own_group:
            dist.destroy_process_group()


def _backend(run: TrainRun) -> str:
    return "nccl" if run.workers.gpus else "gloo"


def _workers(run: TrainRun) -> Workers:
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if world_size != run.workers.num_workers:
        raise UserError(
            "InvalidSpec",
            f"the run asks for {run.workers.num_workers} workers but {world_size} were started; "
            "start as many, or change spec.compute.workers",
        )
    device = torch.device("cpu")
    if run.workers.gpus:
        if not torch.cuda.is_available():
            raise UserError("InvalidSpec", "spec.compute.perWorker.gpus: this machine has no GPU that torch can use")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return Workers(rank, world_size, device, _control_group() if world_size > 1 else None, run.workers.tensor)


def _control_group() -> dist.ProcessGroup:
    group: Any = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    return group


def shard_model(loss: nn.Module, run: TrainRun, workers: Workers) -> nn.Module:
    """Move a model in its loss to the device and, where the run shards, split it (FSDP2): each block, then the rest.

    Where fewer workers hold a copy than there are, the copies' gradients are averaged as well (HSDP). Neighbours by
    rank, which share a machine, hold a layer together (tensor parallel), then their neighbours a copy.

    The loss is the root, not the model: it uses the head's weight, which is whole only inside the root's forward pass.

    Raises:
        UserError: InvalidSpec where the model's layers cannot be split.
    """
    loss.to(workers.device)
    if not run.workers.splits_weights:
        return loss
    mesh = _mesh(run, workers)
    if run.workers.tensor > 1:
        split_layers(loss.model, mesh["tensor"])
        mesh = mesh[tuple(name for name in mesh.mesh_dim_names or () if name != "tensor")]
    dtype = torch.bfloat16 if run.training.precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
    for part in loss.children():
        # A teacher beside the model is split as well.
        for block in transformer_blocks(part):
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(loss, mesh=mesh, mp_policy=policy)
    if hasattr(loss, "sums"):
        register_fsdp_forward_method(loss, "sums")
    return loss


def _mesh(run: TrainRun, workers: Workers) -> DeviceMesh:
    sizes = {"replicate": run.workers.replicate, "shard": run.workers.shard, "tensor": run.workers.tensor}
    used = {name: size for name, size in sizes.items() if size > 1 or name == "shard"}
    return init_device_mesh(workers.device.type, tuple(used.values()), mesh_dim_names=tuple(used))


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model: the children of its largest ModuleList."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    largest = max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()), default=None)
    return list(largest) if largest is not None else []


def replicate_loss(loss: nn.Module, run: TrainRun, workers: Workers) -> nn.Module:
    """Average gradients over the processes where each has a full copy; sharding averages by itself."""
    if workers.world_size == 1 or run.workers.splits_weights:
        return loss
    return nn.parallel.DistributedDataParallel(loss, gradient_as_bucket_view=True)


@contextlib.contextmanager
def gradients_synchronized(loss: nn.Module, *, last: bool) -> Iterator[None]:
    """Average gradients over the processes only in the last pass of a step."""
    if isinstance(loss, nn.parallel.DistributedDataParallel) and not last:
        with loss.no_sync():
            yield
        return
    sharded: Any = loss
    if hasattr(sharded, "set_requires_gradient_sync"):
        sharded.set_requires_gradient_sync(last)
    yield


def autocast(run: TrainRun, workers: Workers) -> contextlib.AbstractContextManager[Any]:
    """Compute in bf16 with fp32 weights where the run says so; sharded models cast by themselves."""
    if run.training.precision == "bf16" and not run.workers.splits_weights:
        return torch.autocast(workers.device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
