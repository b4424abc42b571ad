"""Our losses beside TRL's own, on the same tensors: batches of real rows through the same model."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from trl import DPOTrainer
from trl.experimental.gkd import GKDTrainer
from trl.experimental.orpo import ORPOTrainer

from distillations import make_distillation_run, make_teacher_and_student
from methods import make_code_model
from plinth_workloads.data.loader import IGNORED
from preferences import make_preference_run
from training import open_alone

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_code_model(tmp_path_factory.mktemp("base"), steps=2)


def trained_a_little(run):
    """A session whose model is no longer its reference, and the inputs of its next step."""
    session, _ = open_alone(run)
    session.loop.train_step()
    session.loss.eval()
    (batch,) = session.loop._loader.next_step()
    return session, batch


def answers_of(inputs):
    """TRL's mask of the tokens that belong to an answer."""
    mask_RT = torch.zeros_like(inputs["labels_RT"])
    mask_RT[:, 1:] = inputs["labels_RT"][:, :-1] != IGNORED
    return mask_RT


def log_probs_for_trl(model):
    """The model as TRL's DPO calls it, with a head that gives log probabilities of labels."""

    def forward(input_ids, attention_mask, labels, use_cache, fused_lm_head):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache).logits[:, :-1]
        following = labels[:, 1:]
        found = logits.log_softmax(-1).gather(2, following.clamp(min=0)[..., None])[..., 0]
        nothing = torch.zeros_like(found)
        return SimpleNamespace(
            log_probs=found * (following != IGNORED), entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
        )

    return forward


def test_dpo_is_that_of_trl(tmp_path, base):
    session, batch = trained_a_little(make_preference_run(tmp_path, base, settings={"beta": 0.3}))
    inputs, metrics = batch.inputs, defaultdict(lambda: defaultdict(list))
    trainer = SimpleNamespace(
        model=session.model,
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), gather=lambda value: value, gather_for_metrics=lambda value: value
        ),
        beta=0.3,
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        label_smoothing=0.0,
        ld_alpha=None,
        use_weighting=False,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
    )
    chosen_B, rejected_B = inputs["reference_R"].chunk(2)
    given = {
        "input_ids": inputs["input_ids_RT"],
        "attention_mask": torch.ones_like(inputs["input_ids_RT"]),
        "completion_mask": answers_of(inputs),
        "ref_chosen_logps": chosen_B,
        "ref_rejected_logps": rejected_B,
    }
    session.model.zero_grad()
    theirs = DPOTrainer._compute_loss(trainer, log_probs_for_trl(session.model), given, return_outputs=False)
    theirs.backward()
    expected = {name: value.grad.clone() for name, value in session.model.named_parameters()}
    session.model.zero_grad()
    sums = session.loss.sums(**inputs)
    (sums["loss"] / batch.num_targets).backward()
    torch.testing.assert_close(sums["loss"] / batch.num_targets, theirs, rtol=1e-4, atol=1e-5)
    assert 0 < theirs < 0.693
    (accuracy,), (margin,) = metrics["eval"]["rewards/accuracies"], metrics["eval"]["rewards/margins"]
    assert float(sums["accuracy"]) / batch.num_targets == pytest.approx(accuracy)
    assert float(sums["margin"]) / batch.num_targets == pytest.approx(margin, rel=1e-3)
    for name, value in session.model.named_parameters():
        torch.testing.assert_close(value.grad, expected[name], rtol=1e-3, atol=1e-5)


def test_orpo_is_that_of_trl(tmp_path, base):
    session, batch = trained_a_little(make_preference_run(tmp_path, base, "orpo", settings={"beta": 0.3}))
    inputs = batch.inputs
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device=torch.device("cpu")))
    with torch.no_grad():
        logits = session.model(input_ids=inputs["input_ids_RT"], use_cache=False).logits
        labels = inputs["input_ids_RT"].masked_fill(answers_of(inputs) == 0, IGNORED)
        chosen_B, rejected_B = ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True).chunk(2)
        ratios, good, bad, _, _ = ORPOTrainer.odds_ratio_loss(trainer, chosen_B, rejected_B)
        sums = session.loss.sums(**inputs)
    # For its first part TRL takes the mean over a batch's tokens, prompts too; the paper has answers only.
    torch.testing.assert_close(sums["loss"], (-chosen_B - ratios).sum(), rtol=1e-5, atol=1e-4)
    assert float(sums["accuracy"]) == float((good > bad).sum())
    torch.testing.assert_close(sums["margin"], (good - bad).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_distillation_is_that_of_trl(tmp_path, temperature):
    models = make_teacher_and_student(tmp_path / "models", steps=2)
    settings = {"temperature": temperature, "alpha": 0.7}
    session, batch = trained_a_little(make_distillation_run(tmp_path, models, settings=settings))
    inputs = batch.inputs
    given = {"input_ids": inputs["input_ids_BT"], "position_ids": inputs["position_ids_BT"], "use_cache": False}
    with torch.no_grad():
        student, teacher = (model(**given).logits for model in (session.model, session.loss.teacher))
        theirs = GKDTrainer.generalized_jsd_loss(
            student, teacher, inputs["labels_BT"], beta=0.0, temperature=temperature, reduction="sum"
        )
        sums = session.loss.sums(**inputs)
        plain = F.cross_entropy(student.flatten(0, 1), inputs["labels_BT"].flatten(), reduction="sum")
    torch.testing.assert_close(sums["kl"], theirs, rtol=1e-4, atol=1e-3)
    # TRL has no part of the data in this loss, nor Hinton's factor of the temperature squared.
    torch.testing.assert_close(sums["loss"], 0.7 * temperature**2 * theirs + 0.3 * plain, rtol=1e-4, atol=1e-3)
