"""The files of sentence-transformers: read as it reads them, and refused where they ask for more than is done."""

import json

import pytest

from plinth_workloads.errors import UserError
from plinth_workloads.models.sentence_files import (
    SentenceSettings,
    is_sentence_model,
    read_sentence_settings,
    write_sentence_settings,
)


def write(folder, **files):
    for name, content in files.items():
        path = folder / {"pooling": "1_Pooling/config.json"}.get(name, f"{name}.json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))


def read(folder):
    return read_sentence_settings(folder, "models:/tiny/1")


def test_what_is_written_is_read(tmp_path):
    assert not is_sentence_model(tmp_path)
    write_sentence_settings(tmp_path, 32)
    assert is_sentence_model(tmp_path)
    assert read(tmp_path) == SentenceSettings(("mean",))


def test_a_folder_that_does_not_say_takes_the_mean(tmp_path):
    assert read(tmp_path) == SentenceSettings(poolings=("mean",), prompt="", lower_case=False, max_tokens=None)


@pytest.mark.parametrize(
    ("config", "poolings"),
    [
        pytest.param({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",), id="old"),
        pytest.param({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean"), id="two"),
        pytest.param({"pooling_mode": "lasttoken"}, ("lasttoken",), id="new"),
        pytest.param({"pooling_mode": ["mean", "max"]}, ("mean", "max"), id="two new"),
    ],
)
def test_the_pooling_is_named_in_both_ways(tmp_path, config, poolings):
    write(tmp_path, pooling=config)
    assert read(tmp_path).poolings == poolings


def test_length_letters_and_the_default_prompt_are_read(tmp_path):
    write(
        tmp_path,
        sentence_bert_config={"max_seq_length": 256, "do_lower_case": True},
        config_sentence_transformers={"prompts": {"query": "q: ", "passage": "p: "}, "default_prompt_name": "query"},
    )
    assert read(tmp_path) == SentenceSettings(("mean",), "q: ", True, 256)
    write(tmp_path, config_sentence_transformers={"prompts": {"query": "q: "}, "default_prompt_name": None})
    assert read(tmp_path).prompt == ""


def modules(*kinds, path=""):
    return [
        {"path": path if kind == "Transformer" else f"{index}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]


def test_the_pooling_lies_where_the_modules_say(tmp_path):
    write(tmp_path, modules=modules("Transformer", "Normalize", "Pooling"), pooling={"pooling_mode": "cls"})
    (tmp_path / "1_Pooling").rename(tmp_path / "2_Pooling")
    assert read(tmp_path).poolings == ("cls",)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        pytest.param({"modules": modules("Transformer", "Pooling", "Dense")}, "has a module Dense in", id="module"),
        pytest.param({"modules": modules("Transformer", path="0_T")}, "has its encoder in 0_T in", id="place"),
        pytest.param({"pooling": {"pooling_mode": "weightedmean"}}, "pools tokens by weightedmean", id="pooling"),
        pytest.param(
            {
                "pooling": {"pooling_mode": "mean", "include_prompt": False},
                "config_sentence_transformers": {"prompts": {"q": "q: "}, "default_prompt_name": "q"},
            },
            "leaves its prompt out of the pooling",
            id="prompt",
        ),
        pytest.param({"modules": {"a": 1}}, "modules.json is no list of JSON objects", id="no list"),
    ],
)
def test_what_is_not_done_here_is_refused(tmp_path, files, says):
    write(tmp_path, **files)
    with pytest.raises(UserError, match=says):
        read(tmp_path)
