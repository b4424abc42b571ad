"""Whose turn it is: items that wait enter, each with its client, and tokens as they are spent; the next item leaves.

Next is the client on whom the fewest tokens were spent, of equals the one with fewer items, and of his items the first.
Who comes begins where a fair share of everything that was spent stands: nobody saves up what he did not use, and those
who wait are not passed over by ever new ones. That share is fair queueing's virtual time (Demers, Keshav and Shenker,
1989); tokens are counted as they are computed, since nobody knows how long an answer gets, as by the virtual token
counter of Sheng et al. (https://arxiv.org/abs/2401.00588). Pure: no clock, no thread, no model.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class TokenShares:
    """Tokens that were spent on clients, beside what a fair share of all of them is by now."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._fair_share = 0.0

    def __len__(self) -> int:
        """Clients who are remembered: those who wait, and those on whom more than a fair share was spent."""
        return len(self._spent)

    def begin(self, client: str, waiting: Collection[str]) -> None:
        """A client waits from now on, beside those who do already."""
        owing = {one: spent for one, spent in self._spent.items() if one in waiting or spent > self._fair_share}
        self._spent = {**owing, client: max(self.spent(client), self._fair_share)}

    def charge(self, client: str, tokens: int, waiting: Collection[str]) -> None:
        """Tokens were spent on a client, while these wait; where nobody does, nobody owes anything."""
        if not waiting:
            self._spent = {}
            return
        self._spent[client] = self.spent(client) + tokens
        self._fair_share += tokens / (len(waiting) + (client not in waiting))

    def spent(self, client: str) -> float:
        """What was spent on a client; only differences between clients mean anything."""
        return self._spent.get(client, self._fair_share)


class FairQueue(Generic[_Item]):
    """Items that wait, taken in a fair order.

    Args:
        client_of: Whose an item is.
    """

    def __init__(self, client_of: Callable[[_Item], str]) -> None:
        self._client_of = client_of
        self._shares = TokenShares()
        self._ahead: deque[_Item] = deque()
        self._lines: dict[str, deque[_Item]] = {}
        self._num_items = 0

    def __len__(self) -> int:
        """Items that wait."""
        return self._num_items

    def __iter__(self) -> Iterator[_Item]:
        return chain(self._ahead, *self._lines.values())

    def push(self, item: _Item, *, first: bool = False) -> None:
        """Let an item wait, `first` before all others, whosever they are."""
        self._num_items += 1
        if first:
            self._ahead.appendleft(item)
            return
        client = self._client_of(item)
        if client not in self._lines:
            self._shares.begin(client, self._lines)
            self._lines[client] = deque()
        self._lines[client].append(item)

    def head(self) -> _Item | None:
        """The item whose turn it is, which goes on waiting; None where none waits."""
        if self._ahead:
            return self._ahead[0]
        if not self._lines:
            return None
        lines = self._lines
        return lines[min(lines, key=lambda client: (self._shares.spent(client), len(lines[client])))][0]

    def remove(self, item: _Item) -> None:
        """Take out an item that waits."""
        self._num_items -= 1
        if item in self._ahead:
            self._ahead.remove(item)
            return
        client = self._client_of(item)
        self._lines[client].remove(item)
        if not self._lines[client]:
            del self._lines[client]

    def keep(self, is_wanted: Callable[[_Item], bool]) -> None:
        """Take out all items that are not wanted any more."""
        self._ahead = deque(filter(is_wanted, self._ahead))
        lines = {client: deque(filter(is_wanted, line)) for client, line in self._lines.items()}
        self._lines = {client: line for client, line in lines.items() if line}
        self._num_items = len(self._ahead) + sum(map(len, self._lines.values()))

    def charge(self, client: str, tokens: int) -> None:
        """Tokens were spent on a client."""
        self._shares.charge(client, tokens, self._lines)
