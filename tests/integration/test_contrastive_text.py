"""contrastiveText: what is compared with what, and that it learns."""

import math

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer

from objective_runs import make_objective_run, validation_batches, write_docstrings
from plinth_workloads.models.tasks import task_of
from plinth_workloads.serving.text_models import load_text_model
from plinth_workloads.train.export import export_model
from training import ALONE, open_alone, write_jsonl

pytestmark = pytest.mark.integration

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_pair_run(folder, *, rows=None, **spec):
    """A run over signatures and docstrings, or over `rows`."""
    pairs = folder / "pairs.jsonl"
    if not pairs.exists():
        write_docstrings(pairs) if rows is None else write_jsonl(pairs, rows)
    data = {"train": [{"uri": f"file://{pairs}"}]}
    return make_objective_run(folder, "contrastiveText", architecture="bert", **{"data": data, **spec})


def test_the_loss_is_the_symmetric_cross_entropy_of_all_similarities(tmp_path):
    session, _ = open_alone(make_pair_run(tmp_path))
    session.loss.eval()
    inputs = next(iter(validation_batches(session))).inputs
    with torch.no_grad():
        embeddings = []
        for ids, mask in zip(inputs["input_ids_2BT"], inputs["attention_mask_2BT"], strict=True):
            hidden = session.model(input_ids=ids[mask > 0][None]).last_hidden_state[0]
            embeddings.append(hidden.mean(0) / hidden.mean(0).norm())
        first, second = torch.stack(embeddings).chunk(2)
        similarities = first @ second.T / 0.05
        targets = torch.arange(len(first))
        expected = (
            F.cross_entropy(similarities, targets, reduction="sum")
            + F.cross_entropy(similarities.T, targets, reduction="sum")
        ) / 2
        torch.testing.assert_close(session.loss(**inputs), expected, rtol=1e-4, atol=1e-3)


def test_what_is_exported_embeds_as_it_was_trained_to_here_and_in_sentence_transformers(tmp_path):
    session, _ = open_alone(make_pair_run(tmp_path, rows=[{"prompt": "def add(a, b):", "completion": "Add."}] * 8))
    session.loss.eval()
    inputs = next(iter(validation_batches(session))).inputs
    with torch.no_grad():
        trained = session.loss.embedded(inputs["input_ids_2BT"], inputs["attention_mask_2BT"])[0]
    folder = tmp_path / "model"
    export_model(session.run, session.model, session.data.tokenizer, ALONE, folder)
    assert task_of(folder, "the export") == "embed"
    served = load_text_model(folder, "the export", "embed", device="cpu", tracking_uri="", cache_dir=tmp_path)
    (ids,) = served.encode(["def add(a, b):"])
    assert ids == inputs["input_ids_2BT"][0][: len(ids)].tolist()
    with torch.no_grad():
        vector = served(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0]
    torch.testing.assert_close(vector, trained, rtol=0, atol=1e-5)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(["def add(a, b):"], convert_to_tensor=True)[0]
    torch.testing.assert_close(vector, theirs, rtol=0, atol=1e-5)


def test_padding_is_nobodys_partner(tmp_path):
    session, _ = open_alone(make_pair_run(tmp_path))
    session.loss.eval()
    data = session.data
    plan = data.recipe.plan(data.train_documents, data.store, seed=0)
    rows = [plan.row(index) for index in range(4)]
    draws = [(0, 0, index) for index in range(5)]
    alone, padded = data.training_rows.batch(rows, draws[:4]), data.training_rows.batch([*rows, []], draws)
    assert padded.num_targets == 4
    with torch.no_grad():
        torch.testing.assert_close(session.loss(**padded.inputs), session.loss(**alone.inputs), rtol=1e-5, atol=1e-4)
        nothing = data.training_rows.batch([[]], draws[:1])
        assert session.loss(**nothing.inputs) == 0


def test_a_pair_without_a_second_text_is_left_out(tmp_path):
    rows = [{"prompt": f"a {at}", "completion": f"b {at}"} for at in range(30)]
    run = make_pair_run(tmp_path, rows=[*rows, {"prompt": "alone", "completion": ""}], data={"validation": None})
    run_data = {"train": [{"uri": f"file://{tmp_path}/pairs.jsonl"}], "validation": None}
    session, _ = open_alone(make_pair_run(tmp_path, data=run_data))
    assert run.data.format == "promptCompletion"
    assert session.data.store.num_documents == 30


def test_a_long_text_is_cut_and_its_partner_is_kept(tmp_path):
    rows = [{"prompt": f"word {at} " * 100, "completion": f"short {at}"} for at in range(30)]
    session, _ = open_alone(make_pair_run(tmp_path, rows=rows, training={"sequenceLength": 16}))
    inputs = next(iter(validation_batches(session))).inputs
    tokenizer = session.data.tokenizer
    first, second = inputs["input_ids_2BT"].chunk(2)
    assert first.shape[1] == 16
    assert (first[:, -1] == tokenizer.sep_token_id).all()
    assert "short" in tokenizer.decode(second[0])


def test_a_pass_holds_all_rows_of_a_worker(tmp_path):
    run = make_pair_run(tmp_path, training={"globalBatchSize": 64, "sequenceLength": 4096, "steps": 1})
    assert run.training.micro_batch_size == 64


def test_it_finds_partners_far_more_often_than_chance(tmp_path):
    run = make_pair_run(
        tmp_path,
        training={"steps": 40, "globalBatchSize": 32, "sequenceLength": 32, "learningRate": 3e-3},
        evaluation={"everySteps": 40},
    )
    session, losses = open_alone(run)
    session.loop.train()
    assert losses.evaluations[40].keys() == {"loss", "accuracy"}
    sizes = [batch.num_targets for batch in validation_batches(session)]
    chance = len(sizes) / sum(sizes)
    assert losses.evaluations[40]["accuracy"] > 3 * chance
    assert losses.evaluations[40]["loss"] < math.log(32) - 0.5
