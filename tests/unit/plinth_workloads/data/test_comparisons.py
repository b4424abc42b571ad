"""Rows with a chosen and a rejected answer: what is read from them, what is refused, and what of it is learned."""

import numpy as np
import pytest
from datasets import Dataset

from plinth_api.run import RunData, RunSource
from plinth_workloads.data.comparisons import Comparison, border_of, read_comparisons, tokenize_comparisons
from plinth_workloads.errors import UserError
from plinth_workloads.models.tokenizers import load_tokenizer, train_tokenizer

SOURCE = RunSource(uri="file:///rows.jsonl", weight=1.0, format=None, split=None)
ASK = {"role": "user", "content": "say alpha"}
GOOD, BAD = {"role": "assistant", "content": "alpha"}, {"role": "assistant", "content": "beta beta"}


def read(row, **columns):
    data = RunData(
        train=(), validation=(), validation_fraction=None, columns=columns, format="preference", task="preference"
    )
    (comparison,) = read_comparisons(Dataset.from_list([row]), SOURCE, data)
    return comparison


def refusal(row, **columns):
    with pytest.raises(UserError) as error:
        read(row, **columns)
    assert error.value.reason == "InvalidData"
    return error.value.message


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    train_tokenizer(["alpha beta say again " * 20], 320, folder)
    return load_tokenizer(folder, "t")


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, id="turns"),
        pytest.param({"prompt": [ASK], "chosen": "alpha", "rejected": "beta beta"}, id="turns and answers"),
        pytest.param({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, id="whole chats"),
        pytest.param({"prompt": [ASK], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, id="the prompt once more"),
        pytest.param({"prompt": "say alpha", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, id="as text"),
        pytest.param({"prompt": "say alpha", "chosen": [GOOD], "rejected": [BAD]}, id="a text before turns"),
    ],
)
def test_chats_are_read_in_the_forms_that_there_are(row):
    assert read(row) == Comparison([ASK], "alpha", "beta beta")


def test_texts_are_read_from_the_columns_that_are_named():
    row = {"question": "say alpha", "good": "alpha", "bad": "beta"}
    assert read(row, prompt="question", chosen="good", rejected="bad") == Comparison("say alpha", "alpha", "beta")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": None}, "column rejected: is empty; a row needs a chosen and a"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "column chosen: is empty; a row needs a chosen and a"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "column rejected: is the chosen answer once more; give"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "column prompt: is empty; give the text that both answers"),
        ({"chosen": "b", "rejected": "c"}, "column prompt: is empty; give the text that both answers"),
        ({"prompt": "a", "chosen": 1, "rejected": 2}, "column chosen: is int, must be text like the others or a list"),
        ({"prompt": "a", "chosen": "b", "rejected": [BAD]}, "column chosen: is str, must be text like the others or"),
        ({"chosen": [ASK], "rejected": [ASK, BAD]}, "column chosen: must end with an answer of the assistant"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "column prompt: is empty; give the turns that both answers answer"),
        (
            {"chosen": [ASK, GOOD], "rejected": [{**ASK, "content": "other"}, BAD]},
            "column rejected: differs from the chosen chat before the last turn; only the last answers may differ",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_with_its_place(row, sentence):
    assert refusal(row).startswith(f"file:///rows.jsonl row 1, {sentence}")


def test_data_without_rejected_answers_is_refused_with_its_columns():
    assert refusal({"prompt": "a", "chosen": "b"}) == (
        "file:///rows.jsonl has no column rejected; it has prompt, chosen: name the one to use in "
        "spec.data.columns.rejected"
    )


def halves(tokenizer, comparison):
    """The text of both halves, and of their targets."""
    (document,) = tokenize_comparisons([comparison], tokenizer)
    ids, targets = np.array(document.ids), np.array(document.targets)
    border = border_of(targets)
    parts = (slice(0, border), slice(border, None))
    return [tokenizer.decode(ids[part]) for part in parts], [
        tokenizer.decode(ids[part][targets[part]]) for part in parts
    ]


@pytest.mark.parametrize("context", ["say alpha", [ASK]])
def test_only_the_answers_are_learned_each_behind_the_whole_context(tokenizer, context):
    texts, learned = halves(tokenizer, Comparison(context, "alpha", "beta beta"))
    opening = "<|user|>say alpha<|endoftext|><|assistant|>"
    assert texts == [f"{opening}alpha<|endoftext|>", f"{opening}beta beta<|endoftext|>"]
    assert learned == ["alpha<|endoftext|>", "beta beta<|endoftext|>"]


def test_earlier_answers_of_a_chat_are_context(tokenizer):
    _, learned = halves(tokenizer, Comparison([ASK, BAD, ASK], "alpha", "again"))
    assert learned == ["alpha<|endoftext|>", "again<|endoftext|>"]


def test_without_a_template_texts_follow_each_other(tokenizer):
    plain = load_tokenizer(tokenizer.name_or_path, "t")
    plain.chat_template = None
    texts, learned = halves(plain, Comparison("say: ", "alpha", "beta"))
    assert texts == ["say: alpha<|endoftext|>", "say: beta<|endoftext|>"]
    assert learned == [" alpha<|endoftext|>", " beta<|endoftext|>"]
