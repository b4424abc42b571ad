"""Every YAML of docs/objectives.md is run: as it stands but for where the data lies, and how large everything is."""

import re
from pathlib import Path

import pytest
import yaml

from makers import merged
from objective_runs import IMAGE_MODEL, TEXT_MODELS, write_digits, write_library
from plinth_api.objective_rules import FACTS
from plinth_api.parse import parse_resource
from plinth_api.resolve import resolve_train_run
from plinth_api.validate import job_problems
from plinth_workloads.train.export import export_model
from training import ALONE, open_alone, settings_in, write_jsonl

PAGE = Path(__file__).parents[4] / "docs" / "objectives.md"
DOCUMENTS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)]


def key_of(document):
    (key,) = document["spec"]["objective"]
    return key


def test_every_objective_that_works_has_a_yaml():
    assert {key_of(document) for document in DOCUMENTS} == set(FACTS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=[document["metadata"]["name"] for document in DOCUMENTS])
def test_a_yaml_of_the_page_trains_and_is_exported(tmp_path, document):
    assert not job_problems(parse_resource(document))
    run = resolve_train_run(parse_resource(at_tiny_size(document, tmp_path)), settings_in(tmp_path), {})
    session, losses = open_alone(run)
    session.loop.train()
    assert set(losses.by_step) == {1, 2}
    assert set(losses.evaluations[2]) == set(run.evaluation.metrics)
    export_model(run, session.model, session.data.tokenizer, ALONE, tmp_path / "model")
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "model").iterdir()}


def at_tiny_size(document, folder):
    architecture = document["spec"]["model"]["architecture"]
    sizes = {**TEXT_MODELS, "llama": TEXT_MODELS["bert"], "vit_mae": IMAGE_MODEL}[architecture]
    model = {"config": sizes}
    if "tokenizer" in document["spec"]["model"]:
        model["tokenizer"] = {"train": {"vocabSize": 400}}
    data = {"train": [{"uri": f"file://{data_for(document, folder)}", **formats_of(document)}]}
    changes = {
        "model": model,
        "data": {**data, "validation": {"fraction": 0.1}},
        "training": {"steps": 2, "epochs": None, "sequenceLength": 32, "globalBatchSize": 4},
    }
    return {**document, "spec": merged(document["spec"], changes)}


def formats_of(document):
    return {key: value for key, value in document["spec"]["data"]["train"][0].items() if key == "format"}


def data_for(document, folder):
    if key_of(document) == "maskedImage":
        return write_digits(folder / "digits", images=40)
    if key_of(document) == "contrastiveText":
        columns = document["spec"]["data"]["columns"]
        rows = [{columns["prompt"]: f"def f{at}(x)", columns["completion"]: f"Return {at}."} for at in range(40)]
        return write_jsonl(folder / "pairs.jsonl", rows)
    return write_library(folder / "corpus.jsonl", documents=40)
