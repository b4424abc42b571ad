"""The laws of training: what may never change the numbers, and what must."""

import copy

import pytest
import torch

from plinth_workloads.data.loader import Rows
from plinth_workloads.data.packing import Segment
from plinth_workloads.models.adapters import load_adapter, merged
from plinth_workloads.models.load import load_model
from plinth_workloads.train.export import export_model
from training import ALONE, make_train_run, make_tuning_run, open_alone, weights_of
from training_laws import assert_stopping_changes_nothing

WITH_DROPOUT = {"config": {"attention_dropout": 0.1}}


@pytest.fixture
def base_model(tmp_path):
    """A tiny model's folder, trained for two steps."""
    session, _ = open_alone(make_train_run(tmp_path / "base", training={"steps": 2}))
    session.loop.train()
    folder = tmp_path / "base" / "model"
    export_model(session.run, session.model, session.data.tokenizer, ALONE, folder)
    return folder


def test_the_same_seed_gives_the_same_losses(tmp_path):
    runs = [make_train_run(tmp_path / name, model=WITH_DROPOUT) for name in ("first", "second")]
    losses = []
    for run in runs:
        session, seen = open_alone(run)
        session.loop.train()
        losses.append(seen.by_step)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 10


def test_another_seed_gives_other_losses(tmp_path):
    losses = []
    for seed in (1, 2):
        session, seen = open_alone(make_train_run(tmp_path / str(seed), training={"seed": seed}))
        session.loop.train()
        losses.append(seen.by_step)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "muon"])
def test_stopping_and_resuming_equals_never_stopping(tmp_path, optimizer):
    training = {"steps": 12, "optimizer": {"name": optimizer}}
    spec = {"model": WITH_DROPOUT, "training": training, "checkpoint": {"everySteps": 5}}
    assert_stopping_changes_nothing(tmp_path, lambda folder: make_train_run(folder, **spec), after=5)


def test_gradient_accumulation_changes_nothing(tmp_path):
    weights = []
    for micro in (8, 2, 1):
        session, _ = open_alone(make_train_run(tmp_path / str(micro), training={"microBatchSize": micro}))
        session.loop.train()
        weights.append(weights_of(session))
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5)


def test_packed_documents_have_the_loss_that_they_have_alone(tmp_path):
    session, _ = open_alone(make_train_run(tmp_path))
    session.loss.eval()
    store = session.data.store
    rows = Rows(store, 64, session.data.tokenizer.pad_token_id)
    pieces = [Segment(document, 0, min(20, int(store.lengths[document]))) for document in range(3)]
    with torch.no_grad():
        packed = rows.batch([pieces])
        whole = session.loss(**packed.inputs)
        alone = [rows.batch([[piece]]) for piece in pieces]
        parts = [session.loss(**batch.inputs) for batch in alone]
    torch.testing.assert_close(whole, torch.stack(parts).sum(), rtol=1e-6, atol=1e-5)


def test_a_document_does_not_see_the_one_before_it(tmp_path):
    session, _ = open_alone(make_train_run(tmp_path))
    session.loss.eval()
    rows = Rows(session.data.store, 64, session.data.tokenizer.pad_token_id)
    batch = rows.batch([[Segment(0, 0, 10), Segment(1, 0, 10)]])
    changed = copy.deepcopy(batch.inputs["input_ids_BT"])
    changed[0, :10] = 7
    with torch.no_grad():
        before, after = (
            session.model(
                input_ids=ids, position_ids=batch.inputs["position_ids_BT"], attention_mask=None, use_cache=False
            ).logits
            for ids in (batch.inputs["input_ids_BT"], changed)
        )
    torch.testing.assert_close(before[0, 10:20], after[0, 10:20], rtol=0, atol=1e-6)
    assert not torch.allclose(before[0, :10], after[0, :10])


def test_a_merged_adapter_computes_what_the_adapter_computes(tmp_path, base_model):
    session, _ = open_alone(make_tuning_run(tmp_path / "tune", base_model, training={"learningRate": 1e-2}))
    session.loop.train()
    folder = tmp_path / "adapter"
    export_model(session.run, session.model, session.data.tokenizer, ALONE, folder)
    ids = torch.arange(5, 25)[None]
    session.model.eval()
    with torch.no_grad():
        adapted = session.model(input_ids=ids, use_cache=False).logits
        base = load_model(base_model, "base", tracking_uri="", cache_dir=tmp_path).eval()
        plain = base(input_ids=ids, use_cache=False).logits
        merged_logits = merged(load_adapter(base, folder)).eval()(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(merged_logits, adapted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, adapted, atol=1e-3)


def test_tuning_moves_only_the_adapter(tmp_path, base_model):
    session, losses = open_alone(make_tuning_run(tmp_path / "tune", base_model, training={"learningRate": 1e-2}))
    before = weights_of(session)
    session.loop.train()
    moved = {name for name, value in weights_of(session).items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert losses.by_step[10] < losses.by_step[1]


def test_training_learns(tmp_path):
    session, losses = open_alone(make_train_run(tmp_path, training={"steps": 40, "learningRate": 3e-3}))
    session.loop.train()
    assert losses.by_step[40] < 0.7 * losses.by_step[1]
    assert losses.evaluations[40]["loss"] < losses.evaluations[4]["loss"]


def test_pretraining_goes_on_from_a_models_weights(tmp_path, base_model):
    scratch, from_random = open_alone(make_train_run(tmp_path / "scratch", training={"steps": 1}))
    scratch.loop.train()
    model = {"architecture": None, "config": None, "tokenizer": None, "uri": f"file://{base_model}"}
    session, losses = open_alone(make_train_run(tmp_path / "continued", model=model, training={"steps": 20}))
    start = weights_of(session)
    trained = load_model(base_model, "base", tracking_uri="", cache_dir=tmp_path).state_dict()
    assert all(torch.equal(start[name], value) for name, value in trained.items())
    session.loop.train()
    assert losses.by_step[20] < losses.by_step[1]
    assert losses.by_step[1] != from_random.by_step[1]


def test_bf16_trains_fp32_weights_nearly_alike(tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        session, seen = open_alone(make_train_run(tmp_path / precision, training={"precision": precision}))
        session.loop.train()
        losses[precision] = seen.by_step
        assert {value.dtype for value in session.model.parameters()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.02)
