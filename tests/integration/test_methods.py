"""What holds for every method: it learns, moves its own weights alone, resumes, and is what it was after export."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from methods import METHODS, VIRTUAL_TOKEN_METHODS, make_code_model, make_method_run
from plinth_workloads.errors import UserError
from plinth_workloads.models.four_bits import num_elements
from plinth_workloads.models.load import load_for_inference, load_model
from plinth_workloads.objectives.causal_lm import CausalLMLoss
from plinth_workloads.train.checkpoint import newest_checkpoint
from plinth_workloads.train.export import export_model
from plinth_workloads.train.pulse import Pulse
from plinth_workloads.train.session import _measure, _measure_registered
from training import ALONE, open_alone, weights_of
from training_laws import assert_stopping_changes_nothing

pytestmark = pytest.mark.integration

OWN_WEIGHTS = {
    "full": ("model.", "lm_head."),
    "lora": ("lora_A", "lora_B"),
    "qlora": ("lora_A", "lora_B"),
    "dora": ("lora_A", "lora_B", "lora_magnitude_vector"),
    "ia3": ("ia3_l",),
    "prefix": ("virtual_tokens.encoder.embedding",),
    "prompt": ("virtual_tokens.encoder.embedding",),
    "promptEncoder": ("virtual_tokens.encoder.embedding", "virtual_tokens.encoder.mlp_head"),
}
IDS_BT = torch.arange(5, 45).view(2, 20)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_code_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", params=METHODS)
def tuned(request, tmp_path_factory, base):
    """A method, its finished session, the weights before, and the exported folder."""
    folder = tmp_path_factory.mktemp(request.param)
    session, _ = open_alone(make_method_run(folder, base, request.param))
    before = weights_of(session)
    session.loop.train()
    export_model(session.run, session.model, session.data.tokenizer, ALONE, folder / "model")
    session.model.eval()
    return request.param, session, before, folder / "model"


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS_BT, use_cache=False).logits


def load_base(folder, method):
    """The base as the method trains it."""
    if method != "qlora":
        return AutoModelForCausalLM.from_pretrained(folder)
    return load_model(folder, str(folder), four_bits=torch.float32, tracking_uri="", cache_dir=folder)


def test_it_is_better_than_its_base(tuned):
    method, session, _, _ = tuned
    evaluations = session.loop.state.evaluations
    assert evaluations["30"]["loss"] < 0.996 * evaluations["base"]["loss"], method


def test_the_base_is_measured_as_it_was_before(tuned, base):
    method, session, _, _ = tuned
    alone = _measure(session.run, ALONE, session.data, CausalLMLoss(load_base(base, method).eval()), Pulse())
    assert session.loop.state.evaluations["base"]["loss"] == pytest.approx(alone["loss"], rel=1e-6)


def test_its_own_weights_move_and_no_others(tuned):
    method, session, before, _ = tuned
    moved = {name for name, value in weights_of(session).items() if not torch.equal(value, before[name])}
    trainable = {name for name, parameter in session.model.named_parameters() if parameter.requires_grad}
    assert moved
    assert moved <= trainable
    for part in OWN_WEIGHTS[method]:
        assert any(part in name for name in moved), part
    assert all(any(part in name for part in OWN_WEIGHTS[method]) for name in trainable)


def test_a_checkpoint_holds_what_is_trained_and_no_more(tuned):
    _, session, _, _ = tuned
    checkpoint = newest_checkpoint(session.loop._checkpointer.folder)
    saved = {name for file in checkpoint.folder.glob("*.safetensors") for name in load_file(file)}
    trainable = {f"model.{name}" for name, parameter in session.model.named_parameters() if parameter.requires_grad}
    assert {name for name in saved if name.startswith("model.")} == trainable


def test_the_exported_model_computes_what_the_trained_one_did(tuned):
    method, session, _, folder = tuned
    loaded, _ = load_for_inference(f"file://{folder}", tracking_uri="", cache_dir=folder)
    expected = logits_of(session.model)
    if method == "qlora":
        # It is served on the base's own weights, not on those of 4 bits.
        assert 0.98 < torch.cosine_similarity(logits_of(loaded).flatten(), expected.flatten(), dim=0) < 0.9999
    else:
        torch.testing.assert_close(logits_of(loaded), expected, rtol=1e-5, atol=1e-5)
    assert expected.shape[:2] == IDS_BT.shape


def test_peft_loads_the_exported_adapter_on_its_base(tuned, base):
    method, session, _, folder = tuned
    if method == "full":
        plain = AutoModelForCausalLM.from_pretrained(folder)
    else:
        plain = peft.PeftModel.from_pretrained(load_base(base, method), folder)
        assert plain.peft_config["default"].base_model_name_or_path == f"file://{base}"
    torch.testing.assert_close(
        logits_of(plain.eval())[:, -IDS_BT.shape[1] :], logits_of(session.model), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("method", METHODS)
def test_stopping_and_resuming_equals_never_stopping(tmp_path, base, method):
    training = {"steps": 4, "sequenceLength": 32, "globalBatchSize": 2}
    assert_stopping_changes_nothing(tmp_path, lambda folder: make_method_run(folder, base, method, training=training))


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_a_merged_model_is_a_full_one_that_computes_the_same(tmp_path, base, method):
    run = make_method_run(tmp_path, base, method, training={"steps": 3}, output={"merge": True})
    session, _ = open_alone(run)
    session.loop.train()
    export_model(run, session.model, session.data.tokenizer, ALONE, tmp_path / "model")
    session.model.eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    torch.testing.assert_close(logits_of(merged), logits_of(session.model), rtol=1e-5, atol=1e-5)


def test_a_gate_in_packed_rows_measures_it_on_the_same_examples(tuned, base, tmp_path):
    method, session, _, folder = tuned
    packed, _ = open_alone(make_method_run(tmp_path, base, "lora"))
    assert packed.run.training.packing
    assert session.run.training.packing == (method not in VIRTUAL_TOKEN_METHODS)
    measured = _measure_registered(packed, f"file://{folder}")
    # What was trained in 4 bits is measured as it is served.
    tolerance = 2e-2 if method == "qlora" else 1e-5
    assert measured["loss"] == pytest.approx(session.loop.state.evaluations["30"]["loss"], rel=tolerance)


def test_no_job_starts_behind_virtual_tokens(tuned, base, tmp_path):
    method, _, _, folder = tuned
    run = make_method_run(tmp_path, folder, "lora")
    if method not in VIRTUAL_TOKEN_METHODS:
        session, losses = open_alone(run)
        session.loop.train_step()
        assert len(losses.by_step) == 1
        return
    with pytest.raises(UserError) as error:
        open_alone(run)
    assert error.value.message == (
        f"spec.model.uri: file://{folder} is virtual tokens before file://{base}, and nothing can be trained behind "
        f"them; start from file://{base}"
    )


@pytest.mark.parametrize("method", METHODS)
def test_bf16_computes_nearly_the_same(tmp_path, base, method):
    losses = {}
    for precision in ("fp32", "bf16"):
        training = {"steps": 2, "sequenceLength": 32, "globalBatchSize": 2, "precision": precision}
        session, seen = open_alone(make_method_run(tmp_path / precision, base, method, training=training))
        session.loop.train_step()
        session.loop.train_step()
        losses[precision] = seen.by_step
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.02)


def test_weights_in_four_bits_stand_for_all_of_the_model(tmp_path, base):
    session, _ = open_alone(make_method_run(tmp_path, base, "qlora"))
    layers = [(name, p) for name, p in session.model.named_parameters() if "layers" in name and "lora_" not in name]
    whole = {name: p.numel() for name, p in AutoModelForCausalLM.from_pretrained(base).named_parameters()}
    assert sum(num_elements(p) for _, p in layers) == sum(size for name, size in whole.items() if "layers" in name)
    assert {p.dtype for name, p in layers if "norm" not in name} == {torch.uint8}
    assert session.model.get_output_embeddings().weight.dtype == torch.float32


def test_no_adapter_is_quantised(tmp_path, base):
    session, _ = open_alone(make_method_run(tmp_path / "lora", base, "lora"))
    export_model(session.run, session.model, session.data.tokenizer, ALONE, tmp_path / "adapter")
    with pytest.raises(UserError) as error:
        open_alone(make_method_run(tmp_path, tmp_path / "adapter", "qlora"))
    assert error.value.message == (
        f"spec.model.uri: file://{tmp_path / 'adapter'} is an adapter of file://{base}, and only a whole model can be "
        f"quantised; start from file://{base}, or from a version that a job with output.merge registered"
    )
