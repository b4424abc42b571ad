"""maskedLM: what is hidden, that documents of a row stay apart, and that it learns."""

import numpy as np
import pytest
import torch

from objective_runs import TEXT_MODELS, make_objective_run, unigram_loss, validation_batches, write_tables
from plinth_workloads.data.loader import IGNORED
from plinth_workloads.data.masking import Masker
from plinth_workloads.errors import UserError
from plinth_workloads.models.tokenizers import load_tokenizer, train_tokenizer
from plinth_workloads.objectives.masked_lm import packed_first_position
from training import open_alone, write_jsonl
from training_laws import assert_passes_change_nothing, assert_stopping_changes_nothing

pytestmark = pytest.mark.integration

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    marks = {"mask_token": "<|mask|>", "cls_token": "<|cls|>", "sep_token": "<|sep|>"}
    train_tokenizer(["several words of a text " * 20], 300, folder, marks)
    return load_tokenizer(folder, "trained")


def test_most_chosen_tokens_are_masked_some_replaced_and_some_kept(tokenizer):
    rng = np.random.default_rng(0)
    ids = rng.integers(20, 250, 20_000)
    hidden, labels = Masker(tokenizer, 0.15).hide(ids, np.ones(len(ids), bool), rng)
    chosen = labels != IGNORED
    assert chosen.mean() == pytest.approx(0.15, abs=1e-3)
    assert np.array_equal(labels[chosen], ids[chosen])
    assert np.array_equal(hidden[~chosen], ids[~chosen])
    assert (hidden[chosen] == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.02)
    assert (hidden[chosen] == ids[chosen]).mean() == pytest.approx(0.1, abs=0.02)


def test_special_tokens_are_neither_hidden_nor_put_in_place_of_others(tokenizer):
    rng = np.random.default_rng(0)
    ids = np.where(np.arange(5000) % 3 == 0, tokenizer.sep_token_id, rng.integers(20, 250, 5000))
    hidden, labels = Masker(tokenizer, 0.9).hide(ids, np.ones(len(ids), bool), rng)
    assert not (labels == tokenizer.sep_token_id).any()
    replaced = (hidden != ids) & (hidden != tokenizer.mask_token_id)
    assert replaced.sum() > 100
    assert not set(hidden[replaced].tolist()) & set(tokenizer.all_special_ids)


def test_the_pieces_of_a_word_are_hidden_together(tokenizer):
    starts = np.arange(900) % 3 == 0
    _, labels = Masker(tokenizer, 0.2).hide(np.full(900, 200), starts, np.random.default_rng(0))
    words = (labels != IGNORED).reshape(300, 3)
    assert words.all(1).sum() == words.any(1).sum() == 60


def test_whole_words_of_documents_are_those_of_the_tokenizer(tmp_path):
    session, _ = open_alone(make_objective_run(tmp_path, "maskedLM", architecture="bert", settings={"wholeWord": True}))
    store, tokenizer = session.data.store, session.data.tokenizer
    ids, starts = store.tokens[: store.offsets[1]], store.word_starts[: store.offsets[1]]
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
    ends = [*np.flatnonzero(starts)[1:], len(ids)]
    words = [tokenizer.decode(ids[start:end]) for start, end in zip(np.flatnonzero(starts), ends, strict=True)]
    text = tokenizer.decode(ids[1:-1])
    found = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert words[1:-1] == [text[start:end] for _, (start, end) in found]
    assert len(words) < len(ids) - 100


@pytest.mark.parametrize(
    ("architecture", "first"), [("bert", 0), ("roberta", 1), ("electra", 0), ("modernbert", 0), ("distilbert", 0)]
)
def test_where_positions_of_packed_documents_start_is_found_out(architecture, first):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if architecture == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0}
    config = transformers.AutoConfig.for_model(architecture, vocab_size=64, **sizes, **special)
    assert packed_first_position(transformers.AutoModelForMaskedLM.from_config(config)) == first


def test_packed_documents_do_not_see_each_other(tmp_path):
    session, _ = open_alone(make_objective_run(tmp_path, "maskedLM", architecture="bert"))
    session.loss.eval()
    inputs = next(
        batch.inputs for batch in validation_batches(session) if (batch.inputs["documents_BT"][0] == 1).sum() > 3
    )
    row = {name: tensor[:1].clone() for name, tensor in inputs.items()}
    is_second = row["documents_BT"] == 1
    row["labels_BT"] = torch.where(is_second, 7, IGNORED)
    first_changed = {**row, "input_ids_BT": torch.where(is_second, row["input_ids_BT"], 9)}
    second_changed = {**row, "input_ids_BT": torch.where(is_second, 9, row["input_ids_BT"])}
    with torch.no_grad():
        plain = session.loss(**row)
        assert torch.allclose(session.loss(**first_changed), plain, atol=1e-4)
        assert not torch.allclose(session.loss(**second_changed), plain, atol=1e-2)


def test_an_architecture_that_cannot_keep_documents_apart_is_refused_only_when_packed(tmp_path):
    model, training = {"architecture": "deberta"}, {"packing": False, "steps": 2}
    with pytest.raises(UserError, match=r"spec\.training\.packing: deberta .*; set it to false"):
        open_alone(make_objective_run(tmp_path, "maskedLM", architecture="bert", model=model))
    session, losses = open_alone(
        make_objective_run(tmp_path, "maskedLM", architecture="bert", model=model, training=training)
    )
    session.loop.train()
    assert len(losses.by_step) == 2


def test_no_token_is_left_out_without_packing(tmp_path):
    run = make_objective_run(tmp_path, "maskedLM", architecture="bert", training={"packing": False})
    session, _ = open_alone(run)
    batches = list(validation_batches(session))
    documents = session.data.validation_documents
    assert sum(batch.num_tokens for batch in batches) == session.data.store.lengths[documents].sum()


def test_half_of_the_second_texts_follow_the_first(tmp_path):
    run = make_objective_run(tmp_path, "maskedLM", architecture="bert", settings={"nextSentence": True})
    session, _ = open_alone(run)
    labels, tokenizer = [], session.data.tokenizer
    for _ in range(20):
        for batch in session.loop._loader.next_step():
            labels += batch.inputs["next_labels_B"].tolist()
            for ids, types, mask in zip(
                *(batch.inputs[name] for name in ("input_ids_BT", "token_type_ids_BT", "documents_BT")), strict=True
            ):
                used = ids[mask >= 0]
                assert used[0] == tokenizer.cls_token_id
                (middle, end) = (used == tokenizer.sep_token_id).nonzero().flatten().tolist()
                assert end == len(used) - 1
                assert types[: middle + 1].sum() == 0
                assert types[middle + 1 : end + 1].all()
    assert np.mean(labels) == pytest.approx(0.5, abs=0.1)


def test_a_wrong_next_sentence_needs_another_document(tmp_path):
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": "one document, and no other " * 20}])
    settings = {"nextSentence": True}
    data = {"train": [{"uri": f"file://{tmp_path}/corpus.jsonl"}], "validation": None}
    run = make_objective_run(tmp_path, "maskedLM", architecture="bert", settings=settings, data=data)
    with pytest.raises(UserError, match="nextSentence: there is one document only"):
        open_alone(run)


def test_next_sentences_need_an_architecture_with_a_head_for_them(tmp_path):
    run = make_objective_run(
        tmp_path,
        "maskedLM",
        architecture="bert",
        settings={"nextSentence": True},
        model={"architecture": "roberta"},
    )
    with pytest.raises(UserError, match="nextSentence: roberta has no head for it; set it to false"):
        open_alone(run)


@pytest.mark.parametrize("settings", [{}, {"nextSentence": True, "wholeWord": True}])
def test_stopping_and_resuming_equals_never_stopping(tmp_path, settings):
    spec = {"settings": settings, "training": {"steps": 4}, "checkpoint": {"everySteps": 2}}
    assert_stopping_changes_nothing(
        tmp_path, lambda folder: make_objective_run(folder, "maskedLM", architecture="bert", **spec)
    )


@pytest.mark.parametrize("settings", [{}, {"nextSentence": True}])
def test_the_size_of_a_pass_changes_nothing(tmp_path, settings):
    model = {"architecture": "bert", "config": NO_DROPOUT}

    def make_run(folder, size):
        spec = {"model": model, "training": {"microBatchSize": size, "steps": 3}}
        return make_objective_run(folder, "maskedLM", architecture="bert", settings=settings, **spec)

    assert_passes_change_nothing(tmp_path, make_run)


def test_masks_change_with_the_epoch_and_not_in_evaluation(tmp_path):
    session, _ = open_alone(make_objective_run(tmp_path, "maskedLM", architecture="bert"))
    rows, row = (
        session.data.training_rows,
        session.data.recipe.plan(session.data.train_documents, session.data.store, seed=0).row(0),
    )
    first, again, later = (rows.batch([row], [draw]).inputs["labels_BT"] for draw in ((0, 0, 0), (0, 0, 0), (0, 1, 0)))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    one, other = (list(validation_batches(session)) for _ in range(2))
    assert all(torch.equal(a.inputs["input_ids_BT"], b.inputs["input_ids_BT"]) for a, b in zip(one, other, strict=True))


def test_it_beats_the_frequency_of_tokens(tmp_path):
    write_tables(tmp_path / "corpus.jsonl")
    config = {**TEXT_MODELS["bert"], **NO_DROPOUT, "initializer_range": 0.2}
    training = {"steps": 80, "sequenceLength": 32, "globalBatchSize": 16, "learningRate": 5e-3}
    run = make_objective_run(
        tmp_path,
        "maskedLM",
        architecture="bert",
        model={"architecture": "bert", "config": config, "tokenizer": {"train": {"vocabSize": 300}}},
        training={**training, "schedule": {"warmupSteps": 5}},
        evaluation={"everySteps": 80, "metrics": ["loss", "perplexity", "accuracy"]},
    )
    session, losses = open_alone(run)
    session.loop.train()
    assert losses.evaluations[80]["loss"] < unigram_loss(session) - 0.15
    assert losses.evaluations[80]["accuracy"] > 0.1
    assert losses.evaluations[80]["perplexity"] == pytest.approx(np.exp(losses.evaluations[80]["loss"]))
