"""How much memory a worker may have, by what the container says."""

import psutil
import pytest
import torch

from plinth_workloads.train.memory import GIB
from plinth_workloads.train.room import MemoryMeter, host_room, room_for_training

V2, V1 = "sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"
MACHINE = psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("files", "size", "raised_by"),
    [
        pytest.param({V2: "1073741824\n"}, GIB, "spec.compute.perWorker.memory", id="cgroup v2"),
        pytest.param({V1: "1073741824\n"}, GIB, "spec.compute.perWorker.memory", id="cgroup v1"),
        pytest.param({V2: "max\n"}, MACHINE, None, id="no limit"),
        pytest.param({}, MACHINE, None, id="no container"),
        pytest.param({V1: "9223372036854771712\n"}, MACHINE, None, id="a limit above the machine"),
    ],
)
def test_room_of_the_host(tmp_path, monkeypatch, files, size, raised_by):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    room = host_room(tmp_path)
    assert (room.size, room.raised_by) == (size, raised_by)


def test_workers_of_one_machine_share_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert host_room(tmp_path).size == MACHINE // 4
    assert host_room(tmp_path).what == "the machine's memory among 4 workers"


def test_what_the_program_holds_is_no_room_and_the_model_in_it_is():
    cpu = torch.device("cpu")
    without, with_model = (room_for_training(cpu, model_bytes=size).size for size in (0, 10**8))
    assert without < host_room().size
    assert with_model - without == pytest.approx(10**8, abs=2 * 10**7)


def test_the_meter_forgets_an_earlier_peak():
    meter = MemoryMeter(torch.device("cpu"))
    large = torch.ones(50_000_000)
    del large
    held = meter.reset()
    small = torch.ones(10_000_000)
    assert 30_000_000 < meter.peak() - held < 120_000_000, small.numel()


def test_without_a_resettable_peak_the_earlier_one_stands(tmp_path):
    meter = MemoryMeter(torch.device("cpu"), tmp_path)
    assert meter.peak() >= meter.reset()
