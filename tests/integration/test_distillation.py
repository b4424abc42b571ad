"""Distillation: the student comes near to its teacher, who is asked as it is, and both read the same tokens."""

import pytest
import torch

from distillations import make_distillation_run, make_teacher_and_student
from methods import make_code_model
from objective_runs import validation_batches
from plinth_workloads.data.loader import IGNORED
from plinth_workloads.errors import UserError
from plinth_workloads.objectives.distillation import DistillationLoss
from preferences import write_comparisons
from training import make_train_run, open_alone, weights_of, write_jsonl

pytestmark = pytest.mark.integration

FEW = {"steps": 4, "globalBatchSize": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_teacher_and_student(tmp_path_factory.mktemp("models"))


def mean_of_labels(session, logits_of):
    """Divergence of a distribution from the teacher's, over the validation labels."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in validation_batches(session):
            inputs = batch.inputs
            given = {"input_ids": inputs["input_ids_BT"], "position_ids": inputs["position_ids_BT"], "use_cache": False}
            labelled = inputs["labels_BT"] != IGNORED
            teacher = session.loss.teacher(**given).logits[labelled].log_softmax(-1)
            student = logits_of(given)[labelled].log_softmax(-1)
            total += float((teacher.exp() * (teacher - student)).sum())
            count += len(teacher)
    return total / count


def test_the_student_comes_nearer_to_the_teacher_than_a_model_that_knows_frequencies(tmp_path, models):
    run = make_distillation_run(
        tmp_path,
        models,
        settings={"alpha": 0.9},
        training={"steps": 60, "learningRate": 2e-2},
        evaluation={"everySteps": 60, "gate": [{"metric": "kl", "betterThan": "base"}]},
    )
    session, losses = open_alone(run)
    session.loop.train()
    evaluated, before = losses.evaluations[60], session.loop.state.evaluations["base"]
    counts = torch.bincount(torch.from_numpy(session.data.store.tokens.astype("int64")), minlength=512) + 1.0
    trivial = mean_of_labels(session, lambda given: counts.log().expand(*given["input_ids"].shape, -1))
    assert evaluated["kl"] < 0.8 * trivial < before["kl"]
    assert evaluated["kl"] == pytest.approx(
        mean_of_labels(session, lambda given: session.model(**given).logits), rel=1e-3
    )
    assert evaluated["perplexity"] < before["perplexity"]


def test_the_teacher_alone_teaches_too(tmp_path, models):
    session, losses = open_alone(make_distillation_run(tmp_path, models, settings={"alpha": 1.0, "temperature": 2.0}))
    session.loop.train()
    assert losses.evaluations[10]["kl"] < losses.evaluations[1]["kl"]
    assert losses.evaluations[10]["loss"] == pytest.approx(4 * losses.evaluations[10]["kl"], rel=1e-5)


def test_only_the_student_moves_and_the_teacher_has_no_dropout(tmp_path, models):
    session, _ = open_alone(make_distillation_run(tmp_path, models, method="lora", training=FEW))
    before = {name: value.clone() for name, value in session.loss.teacher.state_dict().items()}
    student = weights_of(session)
    session.loop.train()
    assert all(torch.equal(value, before[name]) for name, value in session.loss.teacher.state_dict().items())
    moved = {name for name, value in weights_of(session).items() if not torch.equal(value, student[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    session.loss.train()
    assert session.model.training
    assert not session.loss.teacher.training


def test_stopping_and_resuming_equals_never_stopping(tmp_path, models):
    undisturbed, all_losses = open_alone(make_distillation_run(tmp_path / "one", models, training=FEW))
    undisturbed.loop.train()
    run = make_distillation_run(tmp_path / "two", models, training=FEW)
    first, _ = open_alone(run)
    for _ in range(2):
        first.loop.train_step()
    first.loop.save()
    second, losses = open_alone(run)
    second.loop.train()
    assert losses.by_step == {step: all_losses.by_step[step] for step in (3, 4)}
    ours, theirs = weights_of(second), weights_of(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_packed_documents_have_the_loss_that_they_have_alone(tmp_path, models):
    session, _ = open_alone(make_distillation_run(tmp_path / "a", models))
    apart, _ = open_alone(make_distillation_run(tmp_path / "b", models, training={"packing": False}))
    assert session.run.training.packing
    assert not apart.run.training.packing
    sums = []
    for each in (session, apart):
        each.loss.eval()
        with torch.no_grad():
            sums.append([each.loss.sums(**batch.inputs)["kl"] for batch in validation_batches(each)])
    torch.testing.assert_close(sum(sums[0]), sum(sums[1]), rtol=1e-4, atol=1e-2)


def test_padding_of_a_larger_vocabulary_is_left_out(models, tmp_path):
    session, _ = open_alone(make_distillation_run(tmp_path, models))
    loss, batch = session.loss.eval(), next(iter(validation_batches(session)))
    with torch.no_grad():
        before = loss.sums(**batch.inputs)
        loss.teacher.resize_token_embeddings(len(session.data.tokenizer) + 64)
        wider = DistillationLoss(
            session.model, loss.teacher, temperature=1.0, alpha=0.5, num_tokens=len(session.data.tokenizer)
        )
        after = wider.eval().sums(**batch.inputs)
    torch.testing.assert_close(after["kl"], before["kl"], rtol=1e-4, atol=1e-3)


def refusal(run):
    with pytest.raises(UserError) as error:
        open_alone(run)
    return f"{error.value.reason}: {error.value.message}"


def test_a_teacher_that_is_not_there_is_refused_before_the_data_is_read(tmp_path, models):
    run = make_distillation_run(tmp_path, models, settings={"teacher": {"uri": "file:///nowhere"}})
    assert refusal(run) == (
        "ModelNotFound: spec.task.distillation.teacher.uri: file:///nowhere is not a folder; check the path, and that "
        "the volume holds the model"
    )
    assert not list((tmp_path / "work" / "cache").glob("train-*"))


def test_a_teacher_with_another_tokenizer_is_refused_with_numbers(tmp_path, models):
    rows = [{"text": line} for line in write_comparisons(tmp_path / "rows.jsonl").read_text().splitlines()]
    other = make_code_model(tmp_path / "other", steps=1)
    assert len(rows) > 100
    write_jsonl(tmp_path / "words" / "corpus.jsonl", rows)
    stranger, _ = open_alone(make_train_run(tmp_path / "words", model={"tokenizer": {"train": {"vocabSize": 400}}}))
    stranger.data.tokenizer.save_pretrained(other)
    message = refusal(make_distillation_run(tmp_path, models, settings={"teacher": {"uri": f"file://{other}"}}))
    assert message.startswith(
        f"InvalidSpec: spec.task.distillation.teacher.uri: file://{other} has another tokenizer: of"
    )
    assert message.endswith("and 400 in all; use a teacher with the model's tokenizer")


def test_a_teacher_with_too_few_positions_is_refused(tmp_path, models):
    message = refusal(make_distillation_run(tmp_path, models, training={"sequenceLength": 4096}))
    assert "4096 tokens do not fit" in message
