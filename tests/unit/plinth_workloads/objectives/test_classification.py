"""classification: what a text becomes, what its loss and measures are, and what is trained, saved and loaded."""

import json
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from label_runs import lines_of_modules, make_base, make_task_run
from objective_runs import validation_batches
from plinth_workloads.errors import UserError
from plinth_workloads.models.load import load_model
from plinth_workloads.objectives.by_name import objective_of
from plinth_workloads.train.export import export_model
from training import ALONE, make_tuning_run, open_alone, weights_of, write_jsonl

TASK: dict[str, Any] = {"classification": {}}
AUTO_CLASS = "AutoModelForSequenceClassification"
PAIRS = [{"prompt": f"if {at}:", "completion": f"return {at}", "label": at % 2} for at in range(20)]
SEVERAL = [{"text": f"word {at}", "label": ["even"] * (at % 2 == 0) + ["third"] * (at % 3 == 0)} for at in range(30)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of an encoder, which has no pooler yet, and of a language model."""
    folder = tmp_path_factory.mktemp("bases")
    return {name: make_base(folder / name, name) for name in ("bert", "llama")}


@pytest.fixture(scope="module")
def rows():
    return lines_of_modules(most=30)


def trained(folder, base, rows, **spec):
    session, _ = open_alone(make_task_run(folder, base, spec.pop("task", TASK), rows, **spec))
    session.loop.train()
    export_model(session.run, session.model, session.data.tokenizer, ALONE, folder / "model")
    session.loss.eval()
    return session


def first_batch(session):
    return next(iter(validation_batches(session)))


def test_the_loss_is_that_of_transformers_own_head(tmp_path, bases, rows):
    session, _ = open_alone(make_task_run(tmp_path, bases["bert"], TASK, rows))
    session.loss.eval()
    inputs = first_batch(session).inputs
    with torch.no_grad():
        theirs = session.model(
            input_ids=inputs["input_ids_BT"],
            attention_mask=inputs["attention_mask_BT"],
            labels=inputs["labels_BL"].int().argmax(-1),
        ).loss
        torch.testing.assert_close(session.loss(**inputs) / len(inputs["is_text_B"]), theirs)


def test_the_loss_of_several_labels_is_that_of_transformers_own_head(tmp_path, bases):
    task = {"classification": {"multiLabel": True}}
    session = trained(tmp_path, bases["bert"], SEVERAL, task=task)
    inputs = first_batch(session).inputs
    assert session.model.config.problem_type == "multi_label_classification"
    assert {int(count) for count in inputs["labels_BL"].sum(-1)} >= {0, 1}
    with torch.no_grad():
        theirs = session.model(
            input_ids=inputs["input_ids_BT"],
            attention_mask=inputs["attention_mask_BT"],
            labels=inputs["labels_BL"].float(),
        ).loss
        torch.testing.assert_close(session.loss(**inputs) / len(inputs["is_text_B"]), theirs)


def test_accuracy_and_f1_are_those_of_scikit_learn(tmp_path, bases, rows):
    session = trained(tmp_path, bases["llama"], rows, training={"steps": 6, "learningRate": 1e-2})
    predicted, true = [], []
    with torch.no_grad():
        for batch in validation_batches(session):
            inputs = batch.inputs
            output = session.model(input_ids=inputs["input_ids_BT"], attention_mask=inputs["attention_mask_BT"])
            predicted += output.logits.argmax(-1).tolist()
            true += inputs["labels_BL"].int().argmax(-1).tolist()
    found = session.loop.state.evaluations["6"]
    assert found["accuracy"] == pytest.approx(sum(a == b for a, b in zip(predicted, true, strict=True)) / len(true))
    assert found["macroF1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert 0 < found["macroF1"] < 1


def test_padding_counts_for_nothing(tmp_path, bases, rows):
    session, _ = open_alone(make_task_run(tmp_path, bases["llama"], TASK, rows))
    session.loss.eval()
    data = session.data
    plan = data.recipe.plan(data.train_documents, data.store, seed=0)
    some = [plan.row(index) for index in range(3)]
    alone, padded = data.training_rows.batch(some, []), data.training_rows.batch([*some, []], [])
    assert padded.num_targets == alone.num_targets == 3
    with torch.no_grad():
        ours, theirs = session.loss.sums(**padded.inputs), session.loss.sums(**alone.inputs)
        assert session.loss(**data.training_rows.batch([[]], []).inputs) == 0
    assert {name: float(value) for name, value in ours.items()} == pytest.approx(
        {name: float(value) for name, value in theirs.items()}, rel=1e-5
    )


def test_a_pair_of_texts_is_read_as_its_tokenizer_writes_pairs(tmp_path, bases):
    session, _ = open_alone(make_task_run(tmp_path, bases["bert"], TASK, PAIRS))
    tokenizer, inputs = session.data.tokenizer, first_batch(session).inputs
    ids = inputs["input_ids_BT"][0][inputs["attention_mask_BT"][0] > 0]
    types = inputs["token_type_ids_BT"][0][inputs["attention_mask_BT"][0] > 0]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert ids[0] == cls
    assert [int(ids[at]) for at in range(len(ids)) if ids[at] in (cls, sep)] == [cls, sep, sep]
    assert tokenizer.decode(ids[types == 1][:-1]).startswith("return")
    assert tokenizer.decode(ids[types == 0][1:-1]).startswith("if")


def test_long_texts_are_cut_and_texts_without_words_left_out(tmp_path, bases):
    rows = [{"text": "word " * 100 * (at > 0), "label": at % 2} for at in range(20)]
    session, _ = open_alone(make_task_run(tmp_path, bases["bert"], TASK, rows, training={"sequenceLength": 16}))
    assert session.data.store.num_documents == 19
    inputs = first_batch(session).inputs
    assert inputs["input_ids_BT"].shape[1] == 16
    assert (inputs["input_ids_BT"][:, -1] == session.data.tokenizer.sep_token_id).all()


def test_the_exported_model_predicts_labels_by_itself(tmp_path, bases, rows):
    session = trained(tmp_path, bases["bert"], rows, training={"steps": 6})
    (answer,) = pipeline("text-classification", model=str(tmp_path / "model"), top_k=None)([rows[0]["text"]])
    assert {one["label"] for one in answer} == {"argparse", "calendar", "difflib"}
    ids = session.data.tokenizer(rows[0]["text"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        scores = session.model(input_ids=ids).logits[0].softmax(-1)
    names = session.model.config.id2label
    assert {one["label"]: one["score"] for one in answer} == pytest.approx(
        {names[at]: float(score) for at, score in enumerate(scores)}, rel=1e-4
    )


@pytest.mark.parametrize(
    ("base", "method", "whole"),
    [
        ("bert", {"lora": {"r": 2}}, {"classifier", "bert.pooler.dense"}),
        ("llama", {"dora": {"r": 2, "targetModules": "q_proj, down_proj"}}, {"score"}),
        ("bert", {"ia3": {}}, {"classifier", "bert.pooler.dense"}),
    ],
)
def test_an_adapter_holds_the_head_and_what_else_its_base_lacks(tmp_path, bases, rows, base, method, whole):
    run = make_task_run(tmp_path, bases[base], TASK, rows, method={"lora": None, **method})
    session, _ = open_alone(run)
    before = weights_of(session)
    session.loop.train()
    moved = {name for name, value in weights_of(session).items() if not torch.equal(value, before[name])}
    assert all("lora_" in name or "ia3_" in name or ".modules_to_save." in name for name in moved)
    saved = {name.split(".modules_to_save")[0] for name in moved if ".modules_to_save." in name}
    assert {name.removeprefix("base_model.model.") for name in saved} == whole
    export_model(run, session.model, session.data.tokenizer, ALONE, tmp_path / "model")
    again = load_model(tmp_path / "model", "it", auto_class=AUTO_CLASS, tracking_uri="", cache_dir=tmp_path)
    assert again.config.id2label == {0: "argparse", 1: "calendar", 2: "difflib"}
    session.loss.eval()
    inputs = first_batch(session).inputs
    with torch.no_grad():
        loaded = objective_of(run).loss(again, session.data.tokenizer).eval()
        torch.testing.assert_close(loaded(**inputs), session.loss(**inputs), rtol=1e-4, atol=1e-4)


def test_a_merged_adapter_is_a_model_with_labels(tmp_path, bases, rows):
    session = trained(tmp_path, bases["llama"], rows, method={"lora": {"r": 2}}, output={"merge": True})
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert model.config.label2id == {"argparse": 0, "calendar": 1, "difflib": 2}
    encoded = AutoTokenizer.from_pretrained(tmp_path / "model")(rows[0]["text"], return_tensors="pt")
    with torch.no_grad():
        ours = session.model(**{name: encoded[name] for name in ("input_ids", "attention_mask")}).logits
        theirs = model(**{name: encoded[name] for name in ("input_ids", "attention_mask")}).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_a_classifier_goes_on_with_its_head_and_gets_a_new_one_for_other_labels(tmp_path, bases, rows):
    trained(tmp_path / "first", bases["llama"], rows)
    first = load_model(
        tmp_path / "first" / "model", "first", auto_class=AUTO_CLASS, tracking_uri="", cache_dir=tmp_path
    )
    same, _ = open_alone(make_task_run(tmp_path / "same", tmp_path / "first" / "model", TASK, rows))
    assert torch.equal(same.model.score.weight, first.score.weight)
    other, _ = open_alone(make_task_run(tmp_path / "other", tmp_path / "first" / "model", TASK, PAIRS))
    assert other.model.score.weight.shape[0] == 2
    assert other.model.config.id2label == {0: "0", 1: "1"}


def test_a_model_of_other_labels_is_not_compared_with(tmp_path, bases, rows):
    trained(tmp_path, bases["llama"], rows)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    implied = {"id2label": {0: "argparse", 1: "calendar", 2: "heapq"}}
    assert config["id2label"]["2"] == "difflib"
    with pytest.raises(UserError) as error:
        load_model(
            tmp_path / "model",
            "models:/a/1",
            auto_class=AUTO_CLASS,
            implied=implied,
            tracking_uri="",
            cache_dir=tmp_path,
        )
    assert error.value.message == (
        "spec.evaluation.gate: models:/a/1 tells argparse, calendar, difflib apart, the training data has the labels "
        "argparse, calendar, heapq; compare with a model of the same labels"
    )


def test_a_label_in_the_validation_data_alone_is_refused_before_any_step(tmp_path, bases):
    write_jsonl(tmp_path / "held.jsonl", [{"text": "a", "label": 2}])
    data = {"validation": {"sources": [{"uri": f"file://{tmp_path}/held.jsonl"}]}}
    rows = [{"text": f"a {at}", "label": at % 2} for at in range(8)]
    data = {"train": [{"uri": f"file://{write_jsonl(tmp_path / 'rows.jsonl', rows)}"}], **data}
    with pytest.raises(
        UserError, match=r"held\.jsonl row 1: no training example has the label 2, the model learns 0, 1"
    ):
        open_alone(make_task_run(tmp_path, bases["bert"], TASK, rows, data=data))


def test_a_label_of_which_the_fraction_keeps_out_all_examples_is_refused(tmp_path, bases):
    rows = [{"text": f"a {at}", "label": at} for at in range(10)]
    with pytest.raises(UserError) as error:
        open_alone(make_task_run(tmp_path, bases["bert"], TASK, rows))
    assert error.value.reason == "InvalidData"
    assert "validation.fraction has kept out every example of " in error.value.message


def test_a_classifier_starts_from_an_adapter_of_a_language_model(tmp_path, bases, rows):
    tuned, _ = open_alone(make_tuning_run(tmp_path / "chat", bases["llama"], training={"learningRate": 1e-2}))
    tuned.loop.train()
    export_model(tuned.run, tuned.model, tuned.data.tokenizer, ALONE, tmp_path / "chat" / "model")
    session, _ = open_alone(make_task_run(tmp_path / "labels", tmp_path / "chat" / "model", TASK, rows))
    plain = load_model(bases["llama"], "base", tracking_uri="", cache_dir=tmp_path).model.layers[0].self_attn.q_proj
    expected = tuned.model.merge_and_unload().model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(session.model.model.layers[0].self_attn.q_proj.weight, expected)
    assert not torch.equal(plain.weight, expected)
