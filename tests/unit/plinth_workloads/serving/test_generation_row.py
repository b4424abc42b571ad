"""A text on its way to its client: what is held back comes with what follows, and an end never waits."""

import pytest

from plinth_workloads.serving.engine import GenerationRequest, SamplingParameters
from plinth_workloads.serving.generation_row import Row
from plinth_workloads.serving.pace import pause_seconds
from plinth_workloads.serving.sampling import TokenScore
from unit.plinth_workloads.serving.tiny_model import make_tokenizer


@pytest.fixture
def row():
    def make(*, max_tokens=20, **sampling):
        return Row(GenerationRequest((1, 2), SamplingParameters(max_tokens=max_tokens, **sampling)), make_tokenizer())

    return make


def said(row, text, *, score=None, **how):
    """What the client is told with each token of a text."""
    told = []
    for token in make_tokenizer().encode(text):
        delta = row.accept(token, score, ends=False, **how)
        told.append(None if delta is None else (delta.text, delta.num_completion_tokens, delta.finish_reason))
    return told


def test_what_waits_comes_with_the_next_piece(row):
    one = row()
    assert said(one, "a") == [("a", 1, None)]
    assert said(one, "bc", waits=True) == [None, None]
    assert said(one, "d") == [("bcd", 4, None)]


def test_characters_in_parts_come_whole_after_waiting(row):
    one = row()
    assert said(one, "é", waits=True) == [None, None]
    assert said(one, "é") == [("é", 3, None), ("é", 4, None)]


def test_the_last_token_brings_what_waits(row):
    assert said(row(max_tokens=3), "abc", waits=True) == [None, None, ("abc", 3, "length")]
    ended = row()
    assert said(ended, "ab", waits=True) == [None, None]
    delta = ended.accept(256, None, ends=True, waits=True)
    assert delta is not None
    assert (delta.text, delta.num_completion_tokens, delta.finish_reason) == ("ab", 3, "stop")


def test_a_stop_string_ends_a_text_that_waits(row):
    assert said(row(stop=("cd",)), "abcd", waits=True) == [None, None, None, ("ab", 4, "stop")]


def test_what_may_be_a_stop_string_is_held_back_beyond_the_wait(row):
    one = row(stop=("cd",))
    assert said(one, "ab", waits=True) == [None, None]
    assert said(one, "ce") == [("ab", 3, None), ("ce", 4, None)]


def test_the_scores_of_what_waits_come_with_it(row):
    one, score = row(num_logprobs=0), TokenScore(-1.0, ())
    assert said(one, "ab", score=score, waits=True) == [None, None]
    delta = one.accept(make_tokenizer().encode("c")[0], score, ends=False)
    assert delta is not None
    assert [scored.text for scored in delta.scores] == ["a", "b", "c"]


@pytest.mark.parametrize(("num_rows", "seconds"), [(1, 0.0), (4, 0.0), (10, 0.05), (32, 0.1), (256, 0.1)])
def test_few_see_each_token_and_of_many_nobody_waits_for_longer_than_a_reader_notices(num_rows, seconds):
    assert pause_seconds(num_rows) == pytest.approx(seconds)
