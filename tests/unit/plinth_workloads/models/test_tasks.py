"""What a folder's model can be asked for, told by its files alone."""

import json

import pytest

from plinth_workloads.errors import UserError
from plinth_workloads.models.tasks import task_of


def describe(folder, *names, **config):
    (folder / "config.json").write_text(json.dumps({"architectures": names, "vocab_size": 8, **config}))


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("LlamaForCausalLM", "generate"),
        ("GPT2LMHeadModel", "generate"),
        ("Gemma3ForConditionalGeneration", "generate"),
        ("BertForSequenceClassification", "classify"),
        ("LlamaForSequenceClassification", "classify"),
        ("BertModel", "embed"),
        ("BertForMaskedLM", "embed"),
        ("LlamaModel", "embed"),
    ],
)
def test_a_model_does_what_its_head_is_for(tmp_path, name, task):
    describe(tmp_path, name)
    assert task_of(tmp_path, "models:/tiny/1") == task_of(tmp_path, "models:/tiny/1", task) == task


def test_a_folder_without_a_description_generates(tmp_path):
    assert task_of(tmp_path, "models:/tiny/1") == "generate"


def test_a_folder_of_sentence_transformers_embeds_whatever_its_class(tmp_path):
    describe(tmp_path, "Qwen3ForCausalLM")
    (tmp_path / "modules.json").write_text("[]")
    assert task_of(tmp_path, "models:/tiny/1") == "embed"
    assert task_of(tmp_path, "models:/tiny/1", "generate") == "generate"


def test_any_model_of_text_can_be_asked_to_embed(tmp_path):
    for name in ("LlamaForCausalLM", "BertForSequenceClassification"):
        describe(tmp_path, name)
        assert task_of(tmp_path, "models:/tiny/1", "embed") == "embed"


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForSequenceClassification", "LlamaModel"])
def test_a_model_of_another_head_generates_no_text(tmp_path, name):
    describe(tmp_path, name)
    with pytest.raises(UserError, match=f"^models:/tiny/1 is a {name}, which generates no text; spec.task of a Mod"):
        task_of(tmp_path, "models:/tiny/1", "generate")


def test_a_model_without_a_head_for_labels_classifies_nothing(tmp_path):
    describe(tmp_path, "BertModel")
    with pytest.raises(UserError, match=r"BertModel, which classifies no whole texts; spec\.task .* may be embed with"):
        task_of(tmp_path, "models:/tiny/1", "classify")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param("ViTModel", {"vocab_size": None}, id="pictures"),
        pytest.param("ViTForImageClassification", {"vocab_size": None}, id="labels of pictures"),
        pytest.param("T5ForConditionalGeneration", {"is_encoder_decoder": True}, id="two texts"),
        pytest.param("BertForTokenClassification", {}, id="words"),
    ],
)
def test_a_model_of_something_else_is_refused_by_its_class(tmp_path, name, config):
    described = {"architectures": [name], "vocab_size": 8, **config}
    kept = {key: value for key, value in described.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match=f"is a {name}, which neither generates text nor embeds or classifies whole"):
        task_of(tmp_path, "models:/tiny/1")


def test_an_adapter_goes_by_its_own_task(tmp_path):
    adapter = tmp_path / "adapter_config.json"
    # Which labels an adapter tells apart is in a configuration beside it.
    describe(tmp_path, "LlamaForCausalLM")
    for peft_s, ours in (("CAUSAL_LM", "generate"), ("SEQ_CLS", "classify"), ("FEATURE_EXTRACTION", "embed")):
        adapter.write_text(json.dumps({"task_type": peft_s}))
        assert task_of(tmp_path, "models:/tiny/1") == ours
    with pytest.raises(UserError, match="is an adapter for FEATURE_EXTRACTION, which generates no text"):
        task_of(tmp_path, "models:/tiny/1", "generate")
    adapter.write_text(json.dumps({"task_type": "TOKEN_CLS"}))
    with pytest.raises(UserError, match="is an adapter for TOKEN_CLS, which neither"):
        task_of(tmp_path, "models:/tiny/1")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json (cannot be read|is no JSON object)"):
        task_of(tmp_path, "models:/tiny/1")
