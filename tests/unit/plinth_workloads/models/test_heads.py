"""What a folder's model was trained for, told by its files alone."""

import json

import pytest

from plinth_workloads.errors import UserError
from plinth_workloads.models.heads import check_generates_text


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "Gemma3ForConditionalGeneration"])
def test_a_model_that_generates_text_is_taken(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    check_generates_text(tmp_path, "models:/tiny/1")


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForSequenceClassification", "LlamaModel"])
def test_a_model_of_another_head_is_refused_by_its_class(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    with pytest.raises(UserError, match=f"^models:/tiny/1 is a {name}, which generates no text"):
        check_generates_text(tmp_path, "models:/tiny/1")


def test_an_adapter_goes_by_its_own_task(tmp_path):
    adapter = tmp_path / "adapter_config.json"
    adapter.write_text(json.dumps({"task_type": "CAUSAL_LM"}))
    check_generates_text(tmp_path, "models:/tiny/1")
    adapter.write_text(json.dumps({"task_type": "TOKEN_CLS"}))
    with pytest.raises(UserError, match="is an adapter for TOKEN_CLS, which generates no text"):
        check_generates_text(tmp_path, "models:/tiny/1")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json (cannot be read|is no JSON object)"):
        check_generates_text(tmp_path, "models:/tiny/1")
