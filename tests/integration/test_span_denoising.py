"""spanDenoising: what is replaced, what the decoder writes, and that it learns."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies

from objective_runs import TEXT_MODELS, make_objective_run, unigram_loss, validation_batches, write_tables
from plinth_api.objectives import SpanDenoising
from plinth_workloads.data.loader import IGNORED
from plinth_workloads.data.packing import Segment
from plinth_workloads.errors import UserError
from plinth_workloads.objectives.span_denoising import sentinel_ids, span_lengths
from training import open_alone
from training_laws import assert_passes_change_nothing, assert_stopping_changes_nothing

pytestmark = pytest.mark.integration

NO_DROPOUT = {"dropout_rate": 0.0}
LLAMA_ONLY = dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))


@given(
    strategies.integers(2, 600), strategies.floats(0.01, 0.9), strategies.floats(1, 100), strategies.integers(0, 2**31)
)
@settings(max_examples=200, deadline=None)
def test_spans_fill_the_text_whatever_its_length(length, density, mean, seed):
    described = SpanDenoising(noise_density=density, mean_span_length=mean)
    kept, replaced = span_lengths(length, described, np.random.default_rng(seed))
    assert kept.sum() + replaced.sum() == length
    assert len(kept) == len(replaced) >= 1
    assert min(kept.min(), replaced.min()) >= 1
    assert replaced.sum() == min(max(round(length * density), 1), length - 1)


def test_spans_have_the_mean_length_that_is_asked_for():
    described = SpanDenoising(noise_density=0.15, mean_span_length=3.0)
    _, replaced = span_lengths(400, described, np.random.default_rng(0))
    assert (replaced.sum(), len(replaced)) == (60, 20)


def test_source_and_target_together_are_the_text(tmp_path):
    session, _ = open_alone(make_objective_run(tmp_path, "spanDenoising", architecture="t5"))
    data = session.data
    plan = data.recipe.plan(data.train_documents, data.store, seed=0)
    sentinels, eos = sentinel_ids(data.tokenizer), data.tokenizer.eos_token_id
    for index in range(20):
        (piece,) = plan.row(index)
        start = data.store.offsets[piece.document]
        batch = data.training_rows.batch([[piece]], [(0, 0, index)])
        source, target = (batch.inputs[name][0].tolist() for name in ("input_ids_BS", "labels_BT"))
        assert source[-1] == target[-1] == eos
        rebuilt = []
        for token in source[:-1]:
            if token in sentinels:
                after = target[target.index(token) + 1 : -1]
                rebuilt += after[: next((at for at, other in enumerate(after) if other in sentinels), None)]
            else:
                rebuilt.append(token)
        assert rebuilt == data.store.tokens[start + piece.start : start + piece.stop].tolist()


def test_padding_changes_no_loss(tmp_path):
    session, _ = open_alone(make_objective_run(tmp_path, "spanDenoising", architecture="t5"))
    session.loss.eval()
    data = session.data
    rows = [[Segment(0, 0, 20)], [Segment(1, 0, 64)]]
    draws = [(0, 0, 0), (0, 0, 1)]
    with torch.no_grad():
        together = session.loss(**data.training_rows.batch(rows, draws).inputs)
        alone = [
            session.loss(**data.training_rows.batch([row], [draw]).inputs)
            for row, draw in zip(rows, draws, strict=True)
        ]
    torch.testing.assert_close(together, sum(alone), rtol=1e-5, atol=1e-4)


def test_too_few_sentinels_are_refused_with_the_numbers(tmp_path):
    trained, _ = open_alone(make_objective_run(tmp_path, "spanDenoising", architecture="t5"))
    folder = tmp_path / "tokenizer"
    trained.data.tokenizer.save_pretrained(folder)
    tokenizer = {"train": None, "uri": f"file://{folder}"}
    run = make_objective_run(
        tmp_path / "longer",
        "spanDenoising",
        architecture="t5",
        model={"architecture": "t5", "config": {**TEXT_MODELS["t5"], **LLAMA_ONLY}, "tokenizer": tokenizer},
        training={"sequenceLength": 128},
    )
    with pytest.raises(UserError, match="rows of 128 tokens have up to 6 spans, the tokenizer has 3 sentinels"):
        open_alone(run)


def test_stopping_and_resuming_equals_never_stopping(tmp_path):
    spec = {"training": {"steps": 4}, "checkpoint": {"everySteps": 2}}
    assert_stopping_changes_nothing(
        tmp_path, lambda folder: make_objective_run(folder, "spanDenoising", architecture="t5", **spec)
    )


def test_the_size_of_a_pass_changes_nothing(tmp_path):
    model = {"architecture": "t5", "config": {**TEXT_MODELS["t5"], **LLAMA_ONLY, **NO_DROPOUT}}

    def make_run(folder, size):
        spec = {"model": model, "training": {"microBatchSize": size, "steps": 3}}
        return make_objective_run(folder, "spanDenoising", architecture="t5", **spec)

    assert_passes_change_nothing(tmp_path, make_run)


def test_it_beats_the_frequency_of_tokens(tmp_path):
    write_tables(tmp_path / "corpus.jsonl")
    config = {**TEXT_MODELS["t5"], **LLAMA_ONLY, **NO_DROPOUT}
    run = make_objective_run(
        tmp_path,
        "spanDenoising",
        architecture="t5",
        model={"architecture": "t5", "config": config, "tokenizer": {"train": {"vocabSize": 300}}},
        training={"steps": 60, "sequenceLength": 48, "globalBatchSize": 16, "learningRate": 1e-2},
        evaluation={"everySteps": 60, "metrics": ["loss", "accuracy"]},
    )
    session, losses = open_alone(run)
    session.loop.train()
    assert all(
        (batch.inputs["labels_BT"] != IGNORED).sum() == batch.num_targets for batch in validation_batches(session)
    )
    assert losses.evaluations[60]["loss"] < unigram_loss(session) - 0.5
    assert losses.evaluations[60]["accuracy"] > 0.2
