"""tokenClassification: which token has a word's label, what entities are, and what is trained, saved and loaded."""

from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score
from transformers import pipeline

from label_runs import kinds_of_tokens, make_base, make_task_run
from objective_runs import validation_batches
from plinth_workloads.data.labelled import LabelledRow
from plinth_workloads.data.loader import IGNORED
from plinth_workloads.models.load import load_model
from plinth_workloads.objectives.by_name import objective_of
from plinth_workloads.objectives.token_classification import entities, first_tokens
from plinth_workloads.train.export import export_model
from training import ALONE, open_alone

TASK: dict[str, Any] = {"tokenClassification": {}}
METRICS = {"metrics": ["loss", "accuracy", "macroF1", "entityF1"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"), "bert")


@pytest.fixture(scope="module")
def rows():
    return kinds_of_tokens(most=60)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base, rows):
    """A session that was trained by LoRA, and the folder that its adapter is in."""
    folder = tmp_path_factory.mktemp("trained")
    run = make_task_run(folder, base, TASK, rows, method={"lora": {"r": 4}}, evaluation=METRICS)
    session, _ = open_alone(run)
    session.loop.train()
    export_model(run, session.model, session.data.tokenizer, ALONE, folder / "model")
    session.loss.eval()
    return session, folder / "model"


def pieces_of(tokenizer, words, length):
    row = LabelledRow("here", tuple(words), ("x",) * len(words))
    return list(first_tokens(row, tokenizer, length))


def test_the_first_token_of_each_word_has_its_label(trained):
    tokenizer = trained[0].data.tokenizer
    words = ["self", ".", "unusualname", "(", "größe", ")", "=", "", "1"]
    ((ids, of_word),) = pieces_of(tokenizer, words, 64)
    assert [word for word in of_word if word is not None] == [0, 1, 2, 3, 4, 5, 6, 8]
    assert of_word[0] is of_word[-1] is None
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    starts = [tokenizer.decode(ids[at]).strip() for at, word in enumerate(of_word) if word is not None]
    labelled = [word for word in words if word]
    assert all(word.startswith(start.rstrip("\ufffd")) for word, start in zip(labelled, starts, strict=True))
    assert len(ids) > len(words) + 2


def test_a_long_text_goes_on_in_further_rows_and_no_word_is_labelled_twice(trained):
    words = ["unusualname", "=", "other"] * 20
    pieces = pieces_of(trained[0].data.tokenizer, words, 16)
    assert len(pieces) > 5
    assert all(len(ids) <= 16 for ids, _ in pieces)
    assert [word for _, of_word in pieces for word in of_word if word is not None] == list(range(60))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["O", "B-x", "I-x", "O"], [(1, 3, "x")]),
        (["B-x", "B-x", "I-y"], [(0, 1, "x"), (1, 2, "x"), (2, 3, "y")]),
        (["O", "I-x", "I-x"], [(1, 3, "x")]),
        (["NAME", "NAME", "OP", "NAME"], [(0, 2, "NAME"), (2, 3, "OP"), (3, 4, "NAME")]),
        ([], []),
    ],
)
def test_entities_are_runs_of_words_of_one_kind(labels, expected):
    assert entities(labels) == expected


def test_the_loss_is_that_of_transformers_own_head(trained):
    session, _ = trained
    batch = next(iter(validation_batches(session)))
    inputs = batch.inputs
    assert batch.num_targets == int((inputs["labels_BT"] != IGNORED).sum())
    with torch.no_grad():
        theirs = session.model(
            input_ids=inputs["input_ids_BT"], attention_mask=inputs["attention_mask_BT"], labels=inputs["labels_BT"]
        ).loss
        torch.testing.assert_close(session.loss(**inputs) / batch.num_targets, theirs)


def test_the_measures_are_those_of_scikit_learn_and_of_the_entities(trained):
    session, _ = trained
    names, predicted, true, found, wanted, right = session.model.config.id2label, [], [], 0, 0, 0
    with torch.no_grad():
        for batch in validation_batches(session):
            inputs = batch.inputs
            logits = session.model(input_ids=inputs["input_ids_BT"], attention_mask=inputs["attention_mask_BT"]).logits
            for row, labels in zip(logits.argmax(-1), inputs["labels_BT"], strict=True):
                ours = [names[at] for at in row[labels != IGNORED].tolist()]
                theirs = [names[at] for at in labels[labels != IGNORED].tolist()]
                predicted, true = predicted + ours, true + theirs
                found, wanted = found + len(entities(ours)), wanted + len(entities(theirs))
                right += len(set(entities(ours)) & set(entities(theirs)))
    measured = session.loop.state.evaluations["4"]
    assert measured["accuracy"] == pytest.approx(sum(a == b for a, b in zip(predicted, true, strict=True)) / len(true))
    assert measured["macroF1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert measured["entityF1"] == pytest.approx(2 * right / (found + wanted))
    assert 0 < measured["accuracy"] < 1


def test_padding_counts_for_nothing(trained):
    session, _ = trained
    data = session.data
    plan = data.recipe.plan(data.train_documents, data.store, seed=0)
    some = [plan.row(index) for index in range(3)]
    alone, padded = data.training_rows.batch(some, []), data.training_rows.batch([*some, []], [])
    assert padded.num_targets == alone.num_targets
    with torch.no_grad():
        torch.testing.assert_close(session.loss(**padded.inputs), session.loss(**alone.inputs), rtol=1e-5, atol=1e-4)


def test_an_adapter_holds_head_and_labels(trained, tmp_path):
    session, folder = trained
    auto_class = "AutoModelForTokenClassification"
    again = load_model(folder, "it", auto_class=auto_class, tracking_uri="", cache_dir=tmp_path).eval()
    assert set(again.config.label2id) == {"NAME", "NUMBER", "OP", "STRING"}
    inputs = next(iter(validation_batches(session))).inputs
    loaded = objective_of(session.run).loss(again, session.data.tokenizer).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs), session.loss(**inputs), rtol=1e-4, atol=1e-4)


def test_the_exported_model_labels_text_by_itself(tmp_path, base, rows):
    run = make_task_run(tmp_path, base, TASK, rows, training={"steps": 30, "learningRate": 1e-2})
    session, losses = open_alone(run)
    session.loop.train()
    export_model(run, session.model, session.data.tokenizer, ALONE, tmp_path / "model")
    answer = pipeline("token-classification", model=str(tmp_path / "model"))("return len ( week )")
    kinds = {(one["word"].removeprefix("Ġ"), one["entity"]) for one in answer}
    assert ("(", "OP") in kinds
    assert losses.evaluations[30]["accuracy"] > 0.6
