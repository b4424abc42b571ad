"""Which piece of which document goes into which row of an epoch: a pure function of lengths, seed and epoch.

Rows are computed when asked for, so a loader's position is two numbers (epoch, row) however large the data set.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from plinth_workloads.data.token_store import IntArray


class Segment(NamedTuple):
    """Tokens `start:stop` of one document."""

    document: int
    start: int
    stop: int


class EpochPlan(Protocol):
    """The rows of one epoch."""

    @property
    def num_rows(self) -> int:
        """How many rows the epoch has."""
        ...

    def row(self, index: int) -> Sequence[Segment]:
        """The segments of one row, in order; together at most as long as a row."""
        ...


def shuffled_documents(documents: IntArray, weights: Sequence[float], seed: int, epoch: int) -> IntArray:
    """The documents of one epoch in random order, each as often as its weight says.

    Args:
        documents: Ids of documents, [num_documents].
        weights: How many times the epoch passes over each of them; the fractional part is drawn anew in each epoch.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.

    Returns:
        Ids with repetitions, [num_drawn].
    """
    rng = np.random.default_rng([seed, epoch])
    weight = np.asarray(weights, np.float64)
    repeats = np.floor(weight).astype(np.int64)
    repeats += rng.random(len(documents)) < weight - repeats
    drawn = np.repeat(documents, repeats)
    rng.shuffle(drawn)
    return drawn


class ConcatenatedRows:
    """Documents one after another, cut into full rows: no token is wasted but the last, incomplete row.

    A document that crosses the end of a row goes on in the next one as a document of its own. Rows are shuffled too:
    else all rows of a step would come from one long document, and the gradient would follow that document alone.
    """

    def __init__(self, documents: IntArray, lengths: IntArray, sequence_length: int, *, seed: int) -> None:
        self._documents = documents
        self._ends = np.cumsum(lengths[documents])
        self._sequence_length = sequence_length
        total = int(self._ends[-1]) if len(documents) else 0
        self.num_rows = total // sequence_length or int(total > 0)
        self._order = np.random.default_rng(seed).permutation(self.num_rows)

    def row(self, index: int) -> list[Segment]:
        """The segments of row `index`."""
        start = int(self._order[index]) * self._sequence_length
        stop = min(start + self._sequence_length, int(self._ends[-1]))
        position = int(np.searchsorted(self._ends, start, side="right"))
        segments = []
        while start < stop:
            document, end = int(self._documents[position]), int(self._ends[position])
            offset = int(self._ends[position - 1]) if position else 0
            segments.append(Segment(document, start - offset, min(stop, end) - offset))
            start, position = end, position + 1
        return segments


class WholeDocumentRows:
    """Every document whole in one row (cut only at the row's length), several to a row where `packing` is on.

    Packing is best fit decreasing (https://arxiv.org/abs/2404.10830): the number of rows is the same in every epoch.
    """

    def __init__(
        self, documents: IntArray, lengths: IntArray, sequence_length: int, *, packing: bool, seed: int
    ) -> None:
        self._lengths = np.minimum(lengths, sequence_length)
        if packing:
            rows = _best_fit(documents, self._lengths, sequence_length)
        else:
            rows = [[int(document)] for document in documents]
        order = np.random.default_rng(seed).permutation(len(rows))
        self._rows = [rows[index] for index in order]
        self.num_rows = len(rows)

    def row(self, index: int) -> list[Segment]:
        """The segments of row `index`."""
        return [Segment(document, 0, int(self._lengths[document])) for document in self._rows[index]]


class PieceRows:
    """Every document cut into pieces of at most a row's length, each piece a row of its own: nothing is left out."""

    def __init__(self, documents: IntArray, lengths: IntArray, length: int, *, seed: int) -> None:
        self._documents, self._lengths, self._length = documents, lengths, length
        self._ends = np.cumsum(-(-lengths[documents] // length))
        self.num_rows = int(self._ends[-1]) if len(documents) else 0
        self._order = np.random.default_rng(seed).permutation(self.num_rows)

    def row(self, index: int) -> list[Segment]:
        """The one segment of row `index`."""
        number = int(self._order[index])
        position = int(np.searchsorted(self._ends, number, side="right"))
        before = int(self._ends[position - 1]) if position else 0
        document, start = int(self._documents[position]), (number - before) * self._length
        return [Segment(document, start, min(start + self._length, int(self._lengths[document])))]


def _best_fit(documents: IntArray, lengths: IntArray, capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    with_space: dict[int, list[int]] = {}
    spaces: list[int] = []
    for document in documents[np.argsort(-lengths[documents], kind="stable")]:
        length = int(lengths[document])
        found = bisect.bisect_left(spaces, length)
        if found < len(spaces):
            space = spaces[found]
            row = with_space[space].pop()
            if not with_space[space]:
                del with_space[space], spaces[found]
            rows[row].append(int(document))
        else:
            space, row = capacity, len(rows)
            rows.append([int(document)])
        left = space - length
        if left not in with_space:
            bisect.insort(spaces, left)
            with_space[left] = []
        with_space[left].append(row)
    return rows
