"""What the files of a model and of its adapters say before vLLM is started; what it cannot serve is refused here."""

import json
from pathlib import Path
from typing import Any

import pytest

from plinth_api.run import ServeRun
from plinth_workloads.errors import UserError
from plinth_workloads.serving.vllm_model import fetch

LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "base_model_name_or_path": "hf://org/base"}


def folder_of(path: Path, *, architecture: str = "LlamaForCausalLM", **files: str) -> Path:
    path.mkdir()
    config = {"architectures": [architecture], "vocab_size": 8}
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").touch()
    for name, text in files.items():
        (path / name.replace("_json", ".json").replace("_jinja", ".jinja")).write_text(text)
    return path


def adapter_of(path: Path, **changes: Any) -> Path:
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({**LORA, **changes}))
    return path


def run_of(model: Path, *adapters: Path, task: str = "auto") -> ServeRun:
    beside = [{"name": one.name, "uri": f"file://{one}"} for one in adapters]
    return ServeRun.from_wire(
        {
            "name": "m",
            "engine": "vllm",
            "task": task,
            "model": {"uri": f"file://{model}", "adapters": beside},
            "trackingUri": "",
            "gpus": 1,
            "cpus": 1,
            "workDir": "/nowhere",
        }
    )


def refusal_of(run: ServeRun) -> str:
    with pytest.raises(UserError) as refusal:
        fetch(run)
    assert refusal.value.reason == "ModelLoadFailed"
    return refusal.value.message


def test_the_task_is_told_from_the_models_files(tmp_path):
    generates, embeds = folder_of(tmp_path / "a"), folder_of(tmp_path / "b", architecture="BertModel")
    assert fetch(run_of(generates))[0].task == "generate"
    assert fetch(run_of(generates, task="embed"))[0].task == "embed"
    assert fetch(run_of(embeds))[0].task == "embed"


def test_a_classifier_is_left_to_the_torch_engine(tmp_path):
    model = folder_of(tmp_path / "a", architecture="BertForSequenceClassification")
    assert refusal_of(run_of(model)).endswith("classifies texts, which engine vllm does not; set engine: torch")


def test_an_adapter_as_a_model_is_refused_with_what_to_write(tmp_path):
    message = refusal_of(run_of(adapter_of(tmp_path / "a")))
    assert message.endswith("name the base in spec.model and this in spec.adapters")


def test_a_model_without_safetensors_is_refused(tmp_path):
    model = folder_of(tmp_path / "a")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert refusal_of(run_of(model)).endswith("has no weights in safetensors, and no others are loaded")


def test_files_of_sentence_transformers_say_how_a_text_becomes_a_vector(tmp_path):
    model = folder_of(tmp_path / "a", architecture="BertModel", modules_json="[]")
    assert fetch(run_of(model))[0].pools_by_files


@pytest.mark.parametrize(
    ("files", "parser"),
    [
        ({"chat_template_jinja": "say <tool_call> and"}, "hermes"),
        ({"tokenizer_config_json": '{"chat_template": "say <tool_call> and"}'}, "hermes"),
        (
            {
                "tokenizer_config_json": json.dumps(
                    {"chat_template": '{"name": n, "parameters": dictionary of argument'}
                )
            },
            "llama3_json",
        ),
        ({"chat_template_jinja": "no tools"}, None),
        ({}, None),
    ],
)
def test_how_a_model_writes_calls_is_told_from_its_template(tmp_path, files, parser):
    assert fetch(run_of(folder_of(tmp_path / "a", **files)))[0].tool_parser == parser


def test_adapters_have_folders_and_the_greatest_rank_of_all(tmp_path):
    model = folder_of(tmp_path / "m")
    first, second = adapter_of(tmp_path / "a"), adapter_of(tmp_path / "b", rank_pattern={"q_proj": 24})
    found, adapters = fetch(run_of(model, first, second))
    assert [(one.name, one.folder, one.error) for one in adapters] == [("a", first, None), ("b", second, None)]
    assert found.lora_rank == 24


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"peft_type": "IA3"}, "is no adapter of plain LoRA"),
        ({"use_dora": True}, "is no adapter of plain LoRA"),
        ({"r": 1024}, "has a rank of 1024, and vLLM serves at most 512"),
    ],
)
def test_an_adapter_that_vllm_cannot_serve_fails_alone(tmp_path, changes, error):
    model, good, bad = folder_of(tmp_path / "m"), adapter_of(tmp_path / "a"), adapter_of(tmp_path / "b", **changes)
    found, (first, second) = fetch(run_of(model, good, bad))
    assert (first.error, second.folder, found.lora_rank) == (None, None, 8)
    assert second.error is not None
    assert second.error.startswith(f"file://{bad} {error}")


def test_a_folder_without_an_adapter_and_one_that_is_missing_fail_alone(tmp_path):
    model, other = folder_of(tmp_path / "m"), folder_of(tmp_path / "a")
    _, adapters = fetch(run_of(model, other, tmp_path / "missing"))
    assert ["is no adapter" in (one.error or "") for one in adapters] == [True, False]
    assert "is not a folder" in (adapters[1].error or "")
