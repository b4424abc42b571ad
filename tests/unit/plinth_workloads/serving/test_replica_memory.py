import gc
import os
import resource
import weakref
from pathlib import Path

from plinth_workloads.serving.replica_memory import tidy_memory

MIB = 2**20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Cycle:
    def __init__(self):
        self.self = self


def test_what_is_left_is_passed_over_until_the_next_time():
    cycle = Cycle()
    alive = weakref.ref(cycle)
    tidy_memory()
    del cycle
    gc.collect()
    assert alive() is not None

    tidy_memory()
    assert alive() is None


def test_cycles_that_nobody_holds_are_given_back():
    alive = weakref.ref(Cycle())
    tidy_memory()
    assert alive() is None


def use_and_free(num_mib):
    blocks = [bytearray(MIB) for _ in range(num_mib)]
    for block in blocks:
        block[::PAGE_BYTES] = b"1" * (MIB // PAGE_BYTES)


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES // MIB


def test_what_a_step_frees_is_there_for_the_next_one():
    tidy_memory()
    use_and_free(64)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(10):
        use_and_free(64)
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
    assert faults < 64 * MIB // PAGE_BYTES // 4, f"{faults} pages were asked for again"


def test_what_a_version_leaves_behind_goes_back_to_the_system():
    tidy_memory()
    use_and_free(256)
    kept = resident_mib()
    tidy_memory()
    assert kept - resident_mib() > 200
