import random

import pytest

from plinth_workloads.serving.text_stream import IncrementalDetokenizer, StopStrings
from unit.plinth_workloads.serving.tiny_model import END_ID, make_tokenizer


def push_all(detokenizer: IncrementalDetokenizer, ids: list[int]) -> list[str]:
    return [detokenizer.push([token]) for token in ids]


def test_a_character_is_emitted_once_it_is_whole():
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("aé€😀")

    pieces = push_all(IncrementalDetokenizer(tokenizer, [1, 2]), ids)

    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "😀"]


def test_a_character_that_never_becomes_whole_is_left_out():
    tokenizer = make_tokenizer()

    pieces = push_all(IncrementalDetokenizer(tokenizer, []), tokenizer.encode("ok😀")[:-1])

    assert "".join(pieces) == "ok"


def test_long_texts_are_put_together_as_if_decoded_at_once():
    tokenizer = make_tokenizer()
    text = "Grüße, 世界! 😀 " * 40
    ids = tokenizer.encode(text)

    assert "".join(push_all(IncrementalDetokenizer(tokenizer, ids[:2]), ids)) == text


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_are_put_together_as_if_decoded_at_once(seed):
    tokenizer = make_tokenizer()
    ids = random.Random(seed).choices(range(257), k=300)

    pieces = push_all(IncrementalDetokenizer(tokenizer, []), ids)

    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True).removesuffix("\ufffd")


def test_special_tokens_have_no_text():
    tokenizer = make_tokenizer()

    assert push_all(IncrementalDetokenizer(tokenizer, []), [END_ID, *tokenizer.encode("a")]) == ["", "a"]


@pytest.mark.parametrize(
    ("stop", "pieces", "sent", "found"),
    [
        pytest.param((), ["ab", "c"], ["ab", "c"], False, id="no stop string holds nothing back"),
        pytest.param(("END",), ["a E", "N", "D b"], ["a ", "", ""], True, id="over three pieces"),
        pytest.param(("END",), ["EN", "EN", "x"], ["", "EN", "ENx"], False, id="a false start is sent later"),
        pytest.param(("aab",), ["a", "a", "a", "b"], ["", "", "a", ""], True, id="a start within a start"),
        pytest.param(("b", "abc"), ["zab"], ["za"], True, id="the earliest match counts"),
        pytest.param(("\n\n",), ["x\n", "\n"], ["x", ""], True, id="repeated character"),
    ],
)
def test_stop_strings_are_held_back_and_never_sent(stop, pieces, sent, found):
    matcher = StopStrings(stop)

    results = [matcher.push(piece) for piece in pieces]

    assert [text for text, _ in results] == sent
    assert results[-1][1] is found


def test_what_was_held_back_is_sent_at_the_end():
    matcher = StopStrings(("END",))

    assert matcher.push("the EN") == ("the ", False)
    assert matcher.flush() == "EN"
