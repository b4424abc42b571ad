"""How much may be open, and who is turned away."""

from contextlib import ExitStack

import pytest

from plinth_workloads.serving.engine import EngineOverloaded
from plinth_workloads.serving.places import Places


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def fill(places, stack, client):
    """As many as the client can get."""
    for count in range(1000):
        try:
            stack.enter_context(places.taken_by(client))
        except EngineOverloaded:
            return count
    return None


def refused(places, client):
    """What a client is told who gets no place."""
    with pytest.raises(EngineOverloaded) as raised, places.taken_by(client):
        pass
    return raised.value


@pytest.mark.parametrize(("num_places", "most"), [(1, 1), (2, 2), (3, 3), (4, 3), (160, 120)])
def test_alone_a_client_gets_three_quarters(num_places, most):
    with ExitStack() as stack:
        assert fill(Places(num_places), stack, "many") == most


def test_whoever_asks_for_much_is_turned_away_and_who_asks_for_little_is_not():
    places = Places(160)
    with ExitStack() as stack:
        fill(places, stack, "many")
        with places.taken_by("one"):
            assert str(refused(places, "many")) == (
                "120 requests of yours are being answered or wait already; wait for some of them"
            )
        assert fill(places, stack, "as many") > 25
        with places.taken_by("one"):
            pass


def test_where_all_places_are_taken_nobody_gets_one_until_one_is_given_back():
    places = Places(4)
    with ExitStack() as stack:
        for client in "abc":
            stack.enter_context(places.taken_by(client))
        with places.taken_by("d"):
            assert str(refused(places, "e")) == "4 requests are being answered or wait already; try again later"
        stack.enter_context(places.taken_by("e"))


def test_what_comes_in_one_piece_may_be_more_than_there_is_and_leaves_room_for_others():
    places = Places(100, unit="tokens")
    with ExitStack() as stack:
        stack.enter_context(places.taken_by("large", 1000))
        assert "1000 tokens of yours" in str(refused(places, "large"))
        stack.enter_context(places.taken_by("small", 25))
        assert "1025 tokens are" in str(refused(places, "other"))


@pytest.mark.parametrize(
    ("seconds_each", "retry_after"),
    [
        pytest.param(0.001, 1, id="never less"),
        pytest.param(2, 6, id="as fast as lately"),
        pytest.param(90, 60, id="nor more than clients wait"),
    ],
)
def test_who_is_turned_away_is_told_how_long_his_own_take_at_the_speed_of_late(seconds_each, retry_after):
    clock = Clock()
    places = Places(4, clock=clock)
    with ExitStack() as stack:
        stack.enter_context(places.taken_by("many"))
        for _ in range(100):
            with places.taken_by("another"):
                clock.now += seconds_each
        fill(places, stack, "many")
        assert refused(places, "many").retry_after_seconds == retry_after


def test_time_in_which_nothing_was_asked_is_not_taken_for_slowness():
    clock = Clock()
    places = Places(4, clock=clock)
    with places.taken_by("a"):
        clock.now += 1
    clock.now += 3600
    with ExitStack() as stack:
        fill(places, stack, "a")
        clock.now += 4
        assert refused(places, "a").retry_after_seconds == 4
