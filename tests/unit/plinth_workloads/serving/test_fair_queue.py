"""Whose turn it is."""

from collections import defaultdict
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plinth_workloads.serving.fair_queue import FairQueue


@dataclass(eq=False)
class Item:
    client: str
    number: int = 0
    cost: int = 1


def make_queue(*items):
    queue = FairQueue[Item](lambda item: item.client)
    for item in items:
        queue.push(item)
    return queue


def take(queue):
    """The next item, whose cost is spent at once."""
    item = queue.head()
    queue.remove(item)
    queue.charge(item.client, item.cost)
    return item


def take_all(queue):
    return [take(queue) for _ in range(len(queue))]


def test_one_request_does_not_wait_for_five_hundred_of_another_client():
    queue = make_queue(*(Item("many", number, cost=100) for number in range(500)))
    for _ in range(3):
        take(queue)
    queue.push(Item("one"))
    assert take(queue).client == "one"


def test_two_who_always_wait_get_the_same_number_of_tokens_whatever_their_requests_cost():
    queue = make_queue(*(Item("large", cost=90) for _ in range(100)), *(Item("small", cost=10) for _ in range(900)))
    spent = {"large": 0, "small": 0}
    while queue.head() is not None and min(spent.values()) < 4000:
        item = take(queue)
        spent[item.client] += item.cost
        assert abs(spent["large"] - spent["small"]) <= 90


def test_tokens_that_are_made_later_count_when_they_are_made():
    queue = make_queue(Item("long"), Item("long"), Item("short"), Item("short"))
    assert take(queue).client == "long"
    queue.charge("long", 50)
    assert [item.client for item in take_all(queue)] == ["short", "short", "long"]


def test_nobody_saves_up_what_he_did_not_use():
    queue = make_queue(*(Item("busy", cost=10) for _ in range(40)), *(Item("other", cost=10) for _ in range(40)))
    for _ in range(40):
        take(queue)
    for _ in range(10):
        queue.push(Item("rested", cost=10))
    turns = [take(queue).client for _ in range(12)]
    assert sorted(turns) == sorted(["busy", "other", "rested"] * 4)


def test_what_was_spent_while_nobody_waited_is_not_owed():
    queue = make_queue()
    queue.charge("early", 10_000)
    for number in range(3):
        queue.push(Item("early", number))
        queue.push(Item("late", number))
    assert [item.client for item in take_all(queue)] == ["early", "late"] * 3


def test_new_clients_without_end_do_not_keep_an_old_one_waiting():
    queue = make_queue(Item("old", cost=100), Item("new 0"))
    assert take(queue).client == "old"
    queue.push(Item("old"))
    for number in range(1, 400):
        queue.push(Item(f"new {number}"))
        if take(queue).client == "old":
            break
    else:
        pytest.fail("new clients only")
    assert number < 250


def test_what_comes_first_is_before_all_others():
    queue = make_queue(Item("a", 1), Item("b", 2))
    queue.push(Item("a", 3), first=True)
    queue.push(Item("b", 4), first=True)
    assert [item.number for item in queue] == [4, 3, 1, 2]
    assert [item.number for item in take_all(queue)] == [4, 3, 1, 2]


def test_items_that_are_not_wanted_any_more_take_no_turn():
    gone, kept, ahead = Item("a", 1), Item("a", 2), Item("b", 3)
    queue = make_queue(gone, kept)
    queue.push(ahead, first=True)
    queue.keep(lambda item: item is kept)
    assert (len(queue), take_all(queue), queue.head()) == (1, [kept], None)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), num_clients=st.integers(1, 12), steps=st.integers(1, 200))
def test_whoever_waits_is_served_in_order_without_a_pause_and_within_a_bound(seed, num_clients, steps):
    """Arrivals, turns and later costs at random. A turn costs at most 20 and so much again while it is answered."""
    random, queue = Random(seed), make_queue()
    waiting = defaultdict(list)
    passed_over = {}
    for number in range(steps):
        for _ in range(random.randrange(4)):
            item = Item(f"client {random.randrange(num_clients)}", number, cost=random.randint(1, 20))
            waiting[item.client].append(number)
            passed_over.setdefault(item.client, 0)
            queue.push(item)
        if not len(queue):
            assert not waiting
            continue
        item = take(queue)
        assert item.number == waiting[item.client].pop(0), "in the order in which they came"
        if not waiting[item.client]:
            del waiting[item.client], passed_over[item.client]
        else:
            passed_over[item.client] = 0
        queue.charge(item.client, random.randrange(20))
        for client in passed_over:
            passed_over[client] += client != item.client
        # Each of the others can be ahead by what one turn costs, twice: as it has it, and as a share is made of it.
        assert all(count <= 2 * 40 * num_clients for count in passed_over.values())
    assert sum(map(len, waiting.values())) == len(queue) == len(take_all(queue))


def test_clients_who_have_gone_are_forgotten():
    queue = make_queue(*(Item("old", number) for number in range(5)))
    for number in range(2000):
        queue.push(Item(f"new {number}", cost=30))
        while len(queue) > 5:
            if take(queue).client == "old":
                queue.push(Item("old"))
                break
    assert len(queue._shares) < 100
