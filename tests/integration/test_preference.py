"""Preferences: the reference is the model before training, the loss is the papers', and it learns what is better."""

import logging
import shutil
from pathlib import Path

import pytest
import torch

from methods import make_code_model
from plinth_workloads.data.loader import IGNORED
from plinth_workloads.data.reference import read_reference, reference_path
from plinth_workloads.errors import UserError
from plinth_workloads.models.load import load_for_inference
from plinth_workloads.train.export import export_model
from plinth_workloads.train.session import _measure_registered
from preferences import make_preference_run, write_comparisons
from training import ALONE, open_alone, weights_of, write_jsonl

pytestmark = pytest.mark.integration

FEW = {"steps": 4, "globalBatchSize": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_code_model(tmp_path_factory.mktemp("base"), steps=20)


def first_batch(session):
    (batch,) = session.loop._loader.next_step()
    return batch.inputs


@pytest.mark.parametrize(("loss", "method"), [("dpo", "full"), ("dpo", "lora"), ("dpo", "prompt"), ("orpo", "full")])
def test_it_tells_better_answers_on_rows_that_it_has_not_seen(tmp_path, base, loss, method):
    run = make_preference_run(
        tmp_path,
        base,
        loss,
        method,
        training={"steps": 30, "globalBatchSize": 16},
        evaluation={"everySteps": 30, "gate": [{"metric": "loss", "betterThan": "base"}]},
    )
    session, losses = open_alone(run)
    session.loop.train()
    evaluated, before = losses.evaluations[30], session.loop.state.evaluations["base"]
    # Both answers have the same words: what knows lengths and frequencies only is right half of the time.
    assert evaluated["accuracy"] > 0.7
    assert evaluated["margin"] > 0
    assert evaluated["loss"] < before["loss"] - 0.01
    if loss == "dpo":
        assert before["loss"] == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.parametrize("method", ["full", "lora", "prompt"])
def test_the_reference_is_the_base_model_whatever_is_trained(tmp_path, base, method):
    session, _ = open_alone(make_preference_run(tmp_path, base, method=method, training=FEW))
    inputs = first_batch(session)
    model, _ = load_for_inference(f"file://{base}", tracking_uri="", cache_dir=tmp_path)
    labels_RT = inputs["labels_RT"]
    with torch.no_grad():
        found_RT = (
            model(input_ids=inputs["input_ids_RT"]).logits.log_softmax(-1).gather(2, labels_RT.clamp(min=0)[..., None])
        )
    expected_R = (found_RT[..., 0] * (labels_RT != IGNORED)).sum(1)
    torch.testing.assert_close(inputs["reference_R"], expected_R, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_stopping_and_resuming_equals_never_stopping_though_the_reference_is_lost(tmp_path, base, method):
    undisturbed, all_losses = open_alone(make_preference_run(tmp_path / "one", base, method=method, training=FEW))
    undisturbed.loop.train()
    run = make_preference_run(tmp_path / "two", base, method=method, training=FEW)
    first, _ = open_alone(run)
    for _ in range(2):
        first.loop.train_step()
    first.loop.save()
    shutil.rmtree(Path(run.work_dir) / "cache")
    second, losses = open_alone(run)
    assert second.loop.state.step == 2
    second.loop.train()
    assert losses.by_step == {step: all_losses.by_step[step] for step in (3, 4)}
    assert second.loop.state.evaluations["4"] == undisturbed.loop.state.evaluations["4"]
    ours, theirs = weights_of(second), weights_of(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_gradient_accumulation_changes_nothing(tmp_path, base):
    weights = []
    for micro in (4, 1):
        training = {**FEW, "steps": 2, "microBatchSize": micro}
        session, _ = open_alone(make_preference_run(tmp_path / str(micro), base, training=training))
        session.loop.train()
        weights.append(weights_of(session))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=2e-4)


def test_padding_counts_for_nothing(tmp_path, base):
    session, _ = open_alone(make_preference_run(tmp_path, base, training=FEW))
    data = session.data
    plan = data.recipe.plan(data.train_documents, data.store, seed=0)
    rows = [plan.row(index) for index in range(3)]
    draws = [(0, 0, index) for index in range(4)]
    alone, padded = data.training_rows.batch(rows, draws[:3]), data.training_rows.batch([*rows, ()], draws)
    assert padded.num_targets == 3
    session.loss.eval()
    with torch.no_grad():
        ours, theirs = (session.loss.sums(**batch.inputs) for batch in (padded, alone))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-4)


def test_a_registered_model_is_measured_against_the_same_reference(tmp_path, base):
    session, losses = open_alone(make_preference_run(tmp_path, base, training=FEW, evaluation={"everySteps": 4}))
    session.loop.train()
    export_model(session.run, session.model, session.data.tokenizer, ALONE, tmp_path / "model")
    assert _measure_registered(session, f"file://{tmp_path}/model") == pytest.approx(losses.evaluations[4], rel=1e-4)


def test_a_second_attempt_reads_the_reference_that_the_first_has_kept(tmp_path, base):
    run = make_preference_run(tmp_path, base, training=FEW)
    session, _ = open_alone(run)
    path = reference_path(run, session.data.store)
    assert read_reference(path).shape == (session.data.store.num_documents, 2)
    written = path.stat().st_mtime_ns
    open_alone(run)
    assert path.stat().st_mtime_ns == written


def test_rows_that_do_not_fit_are_left_out_with_numbers_and_never_cut(tmp_path, base, caplog):
    comparisons = write_comparisons(tmp_path / "comparisons.jsonl", rows=20)
    long = write_jsonl(
        tmp_path / "long" / comparisons.name, [{"prompt": "f", "chosen": "a", "rejected": "word " * 300}]
    )
    comparisons.write_text(comparisons.read_text() + long.read_text())
    with caplog.at_level(logging.WARNING):
        session, _ = open_alone(make_preference_run(tmp_path, base, training=FEW))
    assert session.data.store.num_documents == 20
    assert "comparisons.jsonl: 1 of 21 rows left out: prompt and longer answer have up to " in caplog.text
    with pytest.raises(UserError, match=r"no row fits: prompt and longer answer have \d+ to \d+ tokens, .* is 128"):
        open_alone(make_preference_run(long.parent, base, training=FEW))
