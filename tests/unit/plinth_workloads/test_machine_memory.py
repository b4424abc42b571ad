import psutil
import torch

from plinth_workloads.machine_memory import container_limit_bytes, free_bytes

CPU = torch.device("cpu")


def write_limit(root, text, name="memory.max"):
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup" / name).write_text(text)


def test_the_container_is_asked_before_the_machine(tmp_path):
    write_limit(tmp_path, "1000000\n")
    assert container_limit_bytes(tmp_path) == 1_000_000
    assert free_bytes(CPU, tmp_path) == 0  # this process holds more than that already


def test_what_this_process_holds_is_not_free(tmp_path):
    limit = psutil.Process().memory_info().rss + 50_000_000
    write_limit(tmp_path, str(limit))
    assert 0 < free_bytes(CPU, tmp_path) <= 60_000_000


def test_without_a_limit_it_is_what_the_machine_has_left(tmp_path):
    write_limit(tmp_path, "max")
    assert container_limit_bytes(tmp_path) is None
    assert free_bytes(CPU, tmp_path) > 100_000_000
