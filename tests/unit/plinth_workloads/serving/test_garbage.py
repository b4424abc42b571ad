import gc
import weakref

from plinth_workloads.serving.garbage import collect_and_freeze


class Cycle:
    def __init__(self):
        self.self = self


def test_what_is_left_is_passed_over_until_the_next_time():
    cycle = Cycle()
    alive = weakref.ref(cycle)
    collect_and_freeze()
    del cycle
    gc.collect()
    assert alive() is not None

    collect_and_freeze()
    assert alive() is None


def test_cycles_that_nobody_holds_are_given_back():
    alive = weakref.ref(Cycle())
    collect_and_freeze()
    assert alive() is None
