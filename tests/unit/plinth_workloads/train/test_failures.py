"""From what a worker raises to what is told of it."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from plinth_workloads.errors import UserError
from plinth_workloads.train.failures import explained
from training import ALONE, make_train_run, open_alone

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.2 GiB is free."
)
CPU = "[enforce fail at alloc_cpu.cpp:116] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:43511"


class Raises(nn.Module):
    """A loss that fails in its third pass."""

    def __init__(self, loss, error):
        super().__init__()
        self.inner, self.error, self.passes = loss, error, 0

    def forward(self, **batch):
        self.passes += 1
        if self.passes == 3:
            raise self.error
        return self.inner(**batch)


def told(folder, error):
    run = make_train_run(folder, compute={"perWorker": {"memory": "2Gi"}})
    session, _ = open_alone(run)
    session.loop._loss = Raises(session.loss, error)
    with pytest.raises(type(error)) as raised:
        session.loop.train()
    return explained(raised.value, run, ALONE, session.loop._pulse.step)


def test_a_gpu_without_memory_names_worker_step_numbers_and_what_to_lower(tmp_path):
    failure = told(tmp_path, torch.OutOfMemoryError(CUDA))
    assert failure.reason == "CudaOutOfMemory"
    assert failure.message == (
        "rank 0 of 1, step 3: the GPU's memory did not suffice for another 2.00 GiB; PyTorch had allocated 0.00 GiB "
        "and reserved 0.00 GiB; lower spec.training.microBatchSize (now 8) or spec.training.sequenceLength (now 64), "
        "set spec.training.activationCheckpointing, or raise spec.compute.parallelism.shard (now 1)"
    )


@pytest.mark.parametrize(
    ("error", "size"),
    [
        pytest.param(RuntimeError(f"{CPU}8589934592 bytes. Error code 12"), "for another 8589934592 bytes", id="torch"),
        pytest.param(MemoryError(), "did not suffice; this process", id="python"),
    ],
)
def test_a_machine_without_memory_names_its_limit(tmp_path, error, size):
    failure = told(tmp_path, error)
    assert failure.reason == "HostOutOfMemory"
    assert failure.message.startswith("rank 0 of 1, step 3: the machine's memory did not suffice")
    assert size in failure.message
    assert "of the 2.00 GiB of spec.compute.perWorker.memory; raise spec.compute.perWorker.memory" in failure.message
    assert "spec.training.microBatchSize (now 8)" in failure.message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(RuntimeError(GLOO), "CollectiveTimeout", id="gloo"),
        pytest.param(dist.DistBackendError("NCCL error: unhandled system error"), "CollectiveTimeout", id="nccl"),
        pytest.param(dist.DistStoreError("wait timeout after 300000ms"), "CollectiveTimeout", id="store"),
        pytest.param(RuntimeError("CUDA error: out of memory"), "CudaOutOfMemory", id="without a class of its own"),
        pytest.param(RuntimeError("shape mismatch"), "UserCodeError", id="anything else"),
        pytest.param(ValueError(GLOO), "UserCodeError", id="the same words of something else"),
        pytest.param(UserError("InvalidData", "row 7"), "InvalidData", id="a sentence stays"),
    ],
)
def test_the_reason(tmp_path, error, reason):
    failure = explained(error, make_train_run(tmp_path), ALONE, 7)
    assert failure.reason == reason
    assert (failure is error) == isinstance(error, UserError)
    if reason == "CollectiveTimeout":
        assert failure.message.startswith("rank 0 of 1, step 7: lost the other workers in a collective operation (")
