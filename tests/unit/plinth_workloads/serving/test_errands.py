"""Work of a thread between its steps: a part each time, in the order in which it came, and nobody waits in vain."""

import pytest

from plinth_workloads.serving.errands import Errands, in_one_part


def parts(done, name, count):
    for number in range(count):
        done.append(f"{name}{number}")
        yield
    return name


def test_each_time_a_part_is_done_of_that_which_came_first():
    errands, done = Errands(), []
    first, second = errands.bring(parts(done, "a", 2)), errands.bring(parts(done, "b", 1))
    seen = []
    while errands:
        errands.do_part()
        seen.append((list(done), first.done(), second.done()))
    assert seen == [
        (["a0"], False, False),
        (["a0", "a1"], False, False),
        (["a0", "a1"], True, False),
        (["a0", "a1", "b0"], True, False),
        (["a0", "a1", "b0"], True, True),
    ]
    assert (first.result(), second.result()) == ("a", "b")


def test_a_call_is_one_part():
    errands = Errands()
    found = errands.bring(in_one_part(divmod, 7, 2))
    errands.do_part()
    assert (found.result(), bool(errands)) == ((3, 1), False)


def test_what_fails_is_told_to_who_brought_it_and_the_next_one_is_done():
    errands = Errands()
    failing, fine = errands.bring(in_one_part(divmod, 7, 0)), errands.bring(in_one_part(divmod, 7, 2))
    errands.do_part()
    errands.do_part()
    with pytest.raises(ZeroDivisionError):
        failing.result()
    assert fine.result() == (3, 1)


def test_what_was_cancelled_before_it_began_never_does_and_costs_no_turn():
    errands, done = Errands(), []
    cancelled, fine = errands.bring(parts(done, "a", 2)), errands.bring(in_one_part(divmod, 7, 2))
    assert cancelled.cancel()
    errands.do_part()
    assert (done, fine.result()) == ([], (3, 1))


def test_what_has_begun_cannot_be_cancelled():
    errands, done = Errands(), []
    found = errands.bring(parts(done, "a", 1))
    errands.do_part()
    assert not found.cancel()
    errands.do_part()
    assert found.result() == "a"


def test_nothing_to_do_is_nothing():
    errands = Errands()
    errands.do_part()
    assert not errands


def test_in_the_end_what_waits_and_what_has_begun_is_given_up():
    errands, done, closed = Errands(), [], []

    def closing():
        try:
            yield
        finally:
            closed.append(True)

    begun, waiting, cancelled = (errands.bring(work) for work in (closing(), parts(done, "b", 1), parts(done, "c", 1)))
    errands.do_part()
    cancelled.cancel()
    errands.fail_all(RuntimeError("stopped"))
    for found in (begun, waiting):
        with pytest.raises(RuntimeError, match="stopped"):
            found.result(0)
    assert (closed, done, cancelled.cancelled(), bool(errands)) == ([True], [], True, False)
