"""What a session refuses before the first step, and what stops it later."""

import pytest

from plinth_workloads.data.prepare import prepare_data
from plinth_workloads.errors import UserError
from plinth_workloads.train.session import num_steps, open_session
from training import ALONE, make_train_run, open_alone, write_corpus, write_jsonl


def refused(run):
    with pytest.raises(UserError) as error:
        open_session(run, ALONE, None, None)
    return f"{error.value.reason}: {error.value.message}"


def test_an_empty_data_set_is_refused(tmp_path):
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": ""}])
    assert "InvalidData" in refused(make_train_run(tmp_path))
    assert "the training data is empty" in refused(make_train_run(tmp_path))


def test_an_unknown_architecture_is_refused_with_the_near_ones(tmp_path):
    message = refused(make_train_run(tmp_path, model={"architecture": "lama"}))
    assert message.startswith("InvalidSpec: spec.model.architecture: transformers knows no lama; did you mean llama")


def test_an_unknown_setting_is_refused_with_the_near_ones(tmp_path):
    message = refused(make_train_run(tmp_path, model={"config": {"hiden_size": 32}}))
    assert message.startswith(
        "InvalidSpec: spec.model.config.hiden_size: llama has no such setting; did you mean hidden_size"
    )


def test_settings_that_do_not_go_together_are_refused(tmp_path):
    message = refused(make_train_run(tmp_path, model={"config": {"hidden_size": 30, "num_attention_heads": 7}}))
    assert message.startswith("InvalidSpec: spec.model")


def test_rows_longer_than_the_positions_are_refused(tmp_path):
    run = make_train_run(tmp_path, model={"architecture": "gpt2", "config": None}, training={"sequenceLength": 4096})
    assert refused(run) == (
        "InvalidSpec: spec.training.sequenceLength: 4096 tokens do not fit the model's 1024 positions; lower it"
    )


OPT = {
    "architecture": "opt",
    "config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
        "intermediate_size": None,
    },
}


def test_an_architecture_whose_documents_see_each_other_is_refused(tmp_path):
    assert refused(make_train_run(tmp_path, model=OPT)) == (
        "InvalidSpec: spec.training.packing: opt lets documents of one row see each other; set it to false"
    )


def test_such_an_architecture_trains_without_packing(tmp_path):
    session, losses = open_alone(make_train_run(tmp_path, model=OPT, training={"packing": False, "steps": 20}))
    session.loop.train()
    assert losses.by_step[20] < losses.by_step[1]


def test_padding_does_not_count_as_tokens(tmp_path):
    session, _ = open_alone(make_train_run(tmp_path, training={"packing": False}))
    assert session.loop.train_step() is False
    assert 0 < session.loop.state.tokens < 8 * 64


def test_a_metric_may_be_left_out(tmp_path):
    session, losses = open_alone(make_train_run(tmp_path, evaluation={"metrics": ["perplexity"]}))
    session.loop.train()
    assert set(losses.evaluations[10]) == {"perplexity"}
    assert "train/perplexity" in losses.reported


def test_a_model_that_does_not_exist_is_refused(tmp_path):
    run = make_train_run(
        tmp_path, model={"architecture": None, "config": None, "tokenizer": None, "uri": "file:///nowhere"}
    )
    assert refused(run) == (
        "ModelNotFound: file:///nowhere is not a folder; check the path, and that the volume holds the model"
    )


def test_a_folder_without_safetensors_is_refused(tmp_path):
    session, _ = open_alone(make_train_run(tmp_path))
    folder = tmp_path / "model"
    session.data.tokenizer.save_pretrained(folder)
    session.model.config.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    changes = {"architecture": None, "config": None, "tokenizer": None, "uri": f"file://{folder}"}
    assert "has no *.safetensors, and pytorch_model.bin is not loaded: a pickle may run any program" in refused(
        make_train_run(tmp_path, model=changes)
    )
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert refused(make_train_run(tmp_path, model=changes)).startswith("ModelLoadFailed: ")


def test_gpus_that_are_not_there_are_refused(tmp_path):
    from plinth_workloads.train.parallel import join_workers

    run = make_train_run(tmp_path, compute={"perWorker": {"gpus": 1}})
    with pytest.raises(UserError, match=r"has no GPU that torch can use"), join_workers(run):
        pass


def test_a_wrong_number_of_processes_is_refused(tmp_path):
    from plinth_workloads.train.parallel import join_workers

    run = make_train_run(tmp_path, compute={"workers": 2})
    with pytest.raises(UserError, match=r"asks for 2 workers but 1 were started"), join_workers(run):
        pass


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    run = make_train_run(tmp_path, checkpoint={"everySteps": 2})
    session, losses = open_alone(run)
    for _ in range(2):
        session.loop.train_step()
    session.loop.save()
    next(session.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"step 3: the loss is nan .* the last good checkpoint is of step 2") as error:
        session.loop.train()
    assert error.value.reason == "LossNaN"
    assert losses.checkpoints == [2]
    assert open_alone(run)[0].loop.state.step == 2


def test_other_data_than_the_checkpoint_has_seen_is_refused(tmp_path):
    run = make_train_run(tmp_path)
    session, _ = open_alone(run)
    session.loop.save()
    write_corpus(tmp_path / "corpus.jsonl", seed=9)
    for cached in (tmp_path / "work" / "cache").glob("train-*"):
        cached.rename(cached.with_name("old"))
    assert "was trained on other data than there is now" in refused(run)


def test_a_stop_file_saves_and_stops(tmp_path):
    run = make_train_run(tmp_path)
    session, losses = open_alone(run)
    session.loop.train_step()
    (tmp_path / "work" / "stop").touch()
    assert session.loop.train() == "stopped"
    assert losses.checkpoints == [2]
    (tmp_path / "work" / "stop").unlink()
    again, _ = open_alone(run)
    assert again.loop.state.step == 2
    assert again.loop.train() == "finished"


def test_another_jobs_checkpoint_is_gone_on_from(tmp_path):
    first, _ = open_alone(make_train_run(tmp_path, checkpoint={"uri": f"file://{tmp_path}/first"}))
    first.loop.train()
    second, _ = open_alone(
        make_train_run(
            tmp_path,
            training={"steps": 15},
            checkpoint={"uri": f"file://{tmp_path}/second", "resumeFrom": f"file://{tmp_path}/first"},
        )
    )
    assert second.loop.state.step == 10


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        pytest.param({"steps": None, "tokens": 1025}, 3, id="tokens are rounded up to whole steps"),
        pytest.param({"steps": 7}, 7, id="steps"),
    ],
)
def test_the_length_of_the_run(tmp_path, training, expected):
    run = make_train_run(tmp_path, training=training)
    assert num_steps(run, prepare_data(run, None)) == expected


def test_a_comparison_counts_as_the_two_sequences_that_it_has(tmp_path):
    run = make_train_run(tmp_path, training={"steps": None, "tokens": 1025})
    data = prepare_data(run, None)
    assert num_steps(run.model_copy(update={"objective": "preference"}), data) == 2


def test_two_epochs_are_twice_one(tmp_path):
    steps = []
    for epochs in (1.0, 2.0, 0.5):
        run = make_train_run(tmp_path, training={"steps": None, "epochs": epochs, "globalBatchSize": 1})
        steps.append(num_steps(run, prepare_data(run, None)))
    assert steps[1] == 2 * steps[0]
    assert abs(steps[2] - steps[0] / 2) <= 1


def test_validation_documents_are_not_trained_on(tmp_path):
    run = make_train_run(tmp_path)
    data = prepare_data(run, None)
    assert len(data.validation_documents) == 6
    assert not set(data.validation_documents) & set(data.train_documents)
    assert len(data.train_documents) + len(data.validation_documents) == data.store.num_documents
