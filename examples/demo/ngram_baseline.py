"""Perplexities of n-gram models, the bar that the demo's pretrained model must clear.

Enter the token segments that a run trained on and those it is validated on; leaves one perplexity an order. The
estimate is interpolated modified Kneser-Ney (Chen and Goodman 1999, https://doi.org/10.1006/csla.1999.0128).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Segments = Sequence[NDArray[np.integer[Any]]]

ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3}


@dataclass(frozen=True)
class Level:
    """The counts of one order n, discounted. An n-gram's code is its tokens as the digits of a base-V number."""

    codes: Ints  # N distinct n-grams, sorted
    shares: Floats  # N: (count - discount) / total of the n-gram's context
    contexts: Ints  # C distinct contexts of n - 1 tokens, sorted
    backoffs: Floats  # C: what the discounts left to the lower order


@dataclass(frozen=True)
class KneserNey:
    """An interpolated model; `levels[0]` is the unigram level, under which lies the uniform distribution."""

    vocab_size: int
    levels: tuple[Level, ...]

    def probabilities(self, ngrams: Ints) -> Floats:
        """Gives the probability of each row's last token after the tokens before it.

        Args:
            ngrams: Token ids of shape [rows, order].

        Returns:
            Probabilities of shape [rows]; over all last tokens of one context they sum to 1.
        """
        result = np.full(len(ngrams), 1.0 / self.vocab_size)
        for order, level in enumerate(self.levels, start=1):
            codes = encode(ngrams[:, -order:], self.vocab_size)
            # A context never seen passes everything on to the lower order.
            backoffs = lookup(level.contexts, level.backoffs, codes // self.vocab_size, missing=1.0)
            result = lookup(level.codes, level.shares, codes, missing=0.0) + backoffs * result
        return result


def encode(ngrams: Ints, vocab_size: int) -> Ints:
    """Turns rows of token ids [rows, order] into codes [rows]."""
    codes = np.zeros(len(ngrams), dtype=np.int64)
    for column in ngrams.T:
        codes = codes * vocab_size + column
    return codes


def lookup(keys: Ints, values: Floats, wanted: Ints, *, missing: float) -> Floats:
    """Gives the values of the wanted keys; `keys` is sorted and distinct."""
    if not len(keys):
        return np.full(len(wanted), missing)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found: Floats = np.where(keys[places] == wanted, values[places], missing)
    return found


def ngrams_of(segments: Segments, order: int) -> Ints:
    """All n-grams that lie within one segment and end in a predicted token: [rows, order].

    A segment's first token is never predicted, so unigrams leave it out.
    """
    windows = [
        np.lib.stride_tricks.sliding_window_view(segment[1:] if order == 1 else segment, order)
        for segment in segments
        if len(segment) >= max(order, 2)
    ]
    return np.concatenate(windows).astype(np.int64) if windows else np.zeros((0, order), dtype=np.int64)


def discounts(counts: Ints) -> Floats:
    """Discounts of the counts 0, 1, 2 and 3 or more (Chen and Goodman 1999, equation 26).

    On small samples, counts of counts are taken as at least 1 and each discount is kept between 0 and its count.
    """
    n1, n2, n3, n4 = (max(int(np.count_nonzero(counts == value)), 1) for value in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    estimates = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    kept: Floats = np.clip(estimates, 0.0, np.arange(4))
    return kept


def make_level(codes: Ints, counts: Ints, vocab_size: int) -> Level:
    """Discounts the counts of one order."""
    taken = discounts(counts)[np.minimum(counts, 3)]
    contexts, places = np.unique(codes // vocab_size, return_inverse=True)
    totals = np.bincount(places, weights=counts, minlength=len(contexts))
    return Level(
        codes=codes,
        shares=(counts - taken) / totals[places],
        contexts=contexts,
        backoffs=np.bincount(places, weights=taken, minlength=len(contexts)) / totals,
    )


def fit(segments: Segments, order: int, vocab_size: int) -> KneserNey:
    """Estimates a model of the given order.

    The highest order counts occurrences, each lower one in how many different contexts its n-grams continue.
    """
    assert vocab_size**order < 2**63, "codes would overflow"
    codes, counts = np.unique(encode(ngrams_of(segments, order), vocab_size), return_counts=True)
    levels = [make_level(codes, counts, vocab_size)]
    for lower in range(order - 1, 0, -1):
        codes, counts = np.unique(codes % vocab_size**lower, return_counts=True)
        levels.append(make_level(codes, counts, vocab_size))
    return KneserNey(vocab_size, tuple(reversed(levels)))


def ngram_perplexities(train_segments: Segments, validation_segments: Segments, vocab_size: int) -> dict[str, float]:
    """Trains a unigram, a bigram and a trigram model and measures each.

    A segment is a document's piece inside one packed row. All its tokens but the first are predicted, and contexts
    never cross segments: a segment's second token, which has one token before it, is left to the bigram model also
    in the trigram's figure. So the figures compare with a transformer that sees the same pieces.

    Args:
        train_segments: Arrays of token ids below `vocab_size`.
        validation_segments: Likewise; at least one has two tokens.
        vocab_size: Number of different tokens V; V cubed must be below 2**63.

    Returns:
        The perplexity per predicted token, by the keys "unigram", "bigram" and "trigram".

    Raises:
        ValueError: If the validation segments hold nothing to predict.
    """
    starts = [segment[:2] for segment in validation_segments]
    num_targets = len(ngrams_of(validation_segments, 1))
    if not num_targets:
        raise ValueError("The validation segments have no predicted token: each is shorter than 2.")
    models = {order: fit(train_segments, order, vocab_size) for order in ORDERS.values()}

    def log_likelihood(order: int, segments: Segments) -> float:
        return float(np.log(models[order].probabilities(ngrams_of(segments, order))).sum())

    totals = {name: log_likelihood(order, validation_segments) for name, order in ORDERS.items()}
    totals["trigram"] += log_likelihood(2, starts)
    return {name: float(np.exp(-total / num_targets)) for name, total in totals.items()}
