"""Labelled rows: which columns they are in, which labels there are, and what is said of rows that cannot be used."""

from typing import Any

import pytest

from label_runs import make_task_run
from plinth_workloads.data.labelled import find_labels, numbers_of, read_labelled
from plinth_workloads.errors import UserError

TEXTS: dict[str, Any] = {"classification": {}}
SEVERAL = {"classification": {"multiLabel": True}}
WORDS: dict[str, Any] = {"tokenClassification": {}}


def make_run(folder, task, rows, **spec):
    return make_task_run(folder, folder / "base", task, rows, **spec)


def read(run, folder):
    return [row for source in run.data.train for row in read_labelled(source, run, folder)]


def test_labels_are_sorted_numbers_by_value_before_texts(tmp_path):
    rows = [{"text": "a", "label": label} for label in ("10", "9", "b", "a", "10")]
    run = make_run(tmp_path, TEXTS, rows)
    assert find_labels(run, tmp_path) == ("9", "10", "a", "b")


def test_labels_are_read_once_and_then_known(tmp_path):
    run = make_run(tmp_path, TEXTS, [{"text": "a", "label": 1}, {"text": "b", "label": 0}])
    assert find_labels(run, tmp_path) == ("0", "1")
    (tmp_path / "rows.jsonl").unlink()
    assert find_labels(run, tmp_path) == ("0", "1")


def test_several_labels_of_a_text_are_each_one(tmp_path):
    run = make_run(tmp_path, SEVERAL, [{"text": "a", "label": ["y", "x", "y"]}, {"text": "b", "label": []}])
    assert [row.labels for row in read(run, tmp_path)] == [("y", "x"), ()]
    assert find_labels(run, tmp_path) == ("x", "y")


def test_a_pair_is_read_where_there_is_no_text_or_where_it_is_named(tmp_path):
    row = {"premise": "a", "hypothesis": "b", "label": "yes"}
    rows = [row, {**row, "label": "no"}]
    run = make_run(tmp_path / "usual", TEXTS, rows)
    assert read(run, tmp_path)[0].texts == ("a", "b")
    with_text = [{**row, "text": "c"} for row in rows]
    assert read(make_run(tmp_path / "text", TEXTS, with_text), tmp_path)[0].texts == ("c",)
    data = {"columns": {"prompt": "text", "completion": "hypothesis"}}
    assert read(make_run(tmp_path / "named", TEXTS, with_text, data=data), tmp_path)[0].texts == ("c", "b")


def test_words_are_read_with_their_labels(tmp_path):
    run = make_run(tmp_path, WORDS, [{"words": ["a", "b"], "ner_tags": ["O", "B-x"]}])
    (row,) = read(run, tmp_path)
    assert (row.texts, row.labels) == (("a", "b"), ("O", "B-x"))


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        pytest.param(
            TEXTS,
            [{"text": "a", "label": "x"}, {"text": None, "label": "x"}],
            "row 2, column text: is empty, must be text",
            id="text missing",
        ),
        pytest.param(
            TEXTS,
            [{"text": "a", "label": "x"}, {"text": "b", "label": None}],
            "row 2, column label: is empty; a label is a text or a whole number",
            id="label missing",
        ),
        pytest.param(
            TEXTS,
            [{"text": "a", "label": 0.5}],
            "row 1, column label: is float; a label is a text or a whole number",
            id="a label that is no label",
        ),
        pytest.param(
            TEXTS,
            [{"text": "a", "label": ["x"]}],
            "row 1, column label: is a list; set spec.task.classification.multiLabel for several labels",
            id="a list",
        ),
        pytest.param(
            SEVERAL,
            [{"text": "a", "label": "x"}],
            "row 1, column label: is str, must be a list of labels with multiLabel",
            id="no list",
        ),
        pytest.param(
            TEXTS,
            [{"body": "a", "label": "x"}],
            "rows.jsonl has the columns body, label, task classification needs text, or prompt and completion, and "
            "label; name text in spec.data.columns",
            id="column missing",
        ),
        pytest.param(
            WORDS,
            [{"tokens": ["a", "b"], "labels": ["O"]}],
            "row 1, column labels: has 1 labels for 2 words; give each word one",
            id="different lengths",
        ),
        pytest.param(
            WORDS,
            [{"tokens": "a b", "labels": ["O", "O"]}],
            "row 1, column tokens: is str, must be a list, with one entry for each word",
            id="a text for words",
        ),
        pytest.param(
            WORDS,
            [{"tokens": ["a", None], "labels": ["O", "O"]}],
            "row 1, column tokens: has a word that is empty, must be text",
            id="a word missing",
        ),
        pytest.param(
            TEXTS,
            [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}],
            "all training examples have the one label x: there is nothing to tell apart; give examples of at least 2 "
            "labels",
            id="one label",
        ),
        pytest.param(
            SEVERAL,
            [{"text": "a", "label": []}],
            "all training examples have no label: there is nothing to tell apart; give examples of at least 1 label",
            id="no label",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_refused_with_their_place(tmp_path, task, rows, message):
    run = make_run(tmp_path, task, rows)
    with pytest.raises(UserError) as error:
        find_labels(run, tmp_path)
    assert error.value.reason == "InvalidData"
    assert error.value.message.endswith(message)
    assert str(tmp_path / "rows.jsonl") in error.value.message


def test_a_label_that_training_does_not_have_is_refused(tmp_path):
    run = make_run(tmp_path, TEXTS, [{"text": "a", "label": "new"}])
    (row,) = read(run, tmp_path)
    with pytest.raises(UserError) as error:
        numbers_of(row, {"x": 0, "y": 1})
    assert error.value.message == (
        f"file://{tmp_path}/rows.jsonl row 1: no training example has the label new, the model learns x, y; give "
        "training examples of it, or leave the row out"
    )


def test_numbered_labels_get_the_names_that_the_data_set_has_for_them(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(tmp_path / "rows.parquet")
    data = {"train": [{"uri": f"file://{tmp_path}/rows.parquet"}]}
    run = make_run(tmp_path, TEXTS, [], data=data)
    assert [row.labels for row in read(run, tmp_path)] == [("good",), ("bad",)]
    assert find_labels(run, tmp_path) == ("bad", "good")
