"""The n-gram bar is a probability distribution, gets simple cases right and keeps to its segments."""

import numpy as np
import pytest

from unit.examples.examples import load_example

ngram_baseline = load_example("ngram_baseline")


def make_segments(num_segments: int, vocab_size: int, seed: int = 0) -> list[np.ndarray]:
    """Random walks on the token ids, so that contexts tell something about what follows."""
    rng = np.random.default_rng(seed)
    return [np.cumsum(rng.geometric(0.4, size=rng.integers(1, 60))) % vocab_size for _ in range(num_segments)]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one_for_seen_and_unseen_contexts(order: int) -> None:
    vocab_size = 23
    model = ngram_baseline.fit(make_segments(40, vocab_size - 2), order, vocab_size)
    rng = np.random.default_rng(1)
    contexts = rng.integers(0, vocab_size, size=(50, order - 1))  # the last two ids were never seen
    words = np.arange(vocab_size)[:, None]
    for context in contexts:
        rows = np.concatenate([np.tile(context, (vocab_size, 1)), words], axis=1)
        probabilities = model.probabilities(rows)
        assert probabilities.sum() == pytest.approx(1.0)
        assert (probabilities > 0).all()


def test_bigram_equals_the_formula_worked_by_hand() -> None:
    segments = [np.array([0, 1, 0, 1, 0, 1]), np.array([0, 2])]
    model = ngram_baseline.fit(segments, 2, 3)
    # Occurrences {01: 3, 10: 2, 02: 1}: n1 = n2 = n3 = n4 = 1, so Y = 1/3 and D1, D2, D3 = 1/3, 1, 5/3.
    # Continuations {0: 1, 1: 1, 2: 1}: n1 = 3, n2 = 1, so Y = 3/5 and D1 = 3/5.
    continuation = (1 - 3 / 5) / 3 + 3 / 5 * 1 / 3
    expected = (3 - 5 / 3) / 4 + (5 / 3 + 1 / 3) / 4 * continuation
    assert model.probabilities(np.array([[0, 1]]))[0] == pytest.approx(expected)


def test_uniform_tokens_have_the_vocabulary_as_perplexity() -> None:
    rng = np.random.default_rng(2)
    train, validation = ([rng.integers(0, 16, size=500) for _ in range(40)] for _ in range(2))
    perplexities = ngram_baseline.ngram_perplexities(train, validation, 16)
    assert list(perplexities) == ["unigram", "bigram", "trigram"]
    assert all(15.5 < value < 17.5 for value in perplexities.values())


def test_longer_contexts_pay_where_the_text_is_predictable() -> None:
    pattern = np.array([0, 1, 0, 2, 3, 0])  # after 0 alone three tokens are possible, after two tokens one is
    train = [np.tile(pattern, 50) for _ in range(5)]
    perplexities = ngram_baseline.ngram_perplexities(train, [np.tile(pattern, 20)], 5)
    assert perplexities["trigram"] < 1.1 < perplexities["bigram"] < perplexities["unigram"]


def test_contexts_do_not_cross_segments() -> None:
    tokens = np.arange(40) % 7
    whole = ngram_baseline.ngrams_of([tokens], 2)
    cut = ngram_baseline.ngrams_of([tokens[:20], tokens[20:]], 2)
    np.testing.assert_array_equal(cut, np.delete(whole, 19, axis=0))


def test_every_order_predicts_the_same_tokens() -> None:
    segments = [np.array([4]), np.array([1, 2]), np.array([1, 2, 3, 4])]
    assert len(ngram_baseline.ngrams_of(segments, 1)) == 4
    assert len(ngram_baseline.ngrams_of(segments, 2)) == 4
    # The trigram model sees two of them; the second tokens of segments are left to the bigram model.
    assert len(ngram_baseline.ngrams_of(segments, 3)) == 2


def test_segments_without_a_target_are_refused() -> None:
    with pytest.raises(ValueError, match="no predicted token"):
        ngram_baseline.ngram_perplexities([np.array([1, 2, 3])], [np.array([1])], 5)
