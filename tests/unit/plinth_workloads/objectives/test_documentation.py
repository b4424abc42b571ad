"""Every YAML of docs/objectives.md is run: as it stands but for where the data lies, and how large everything is."""

import re
from pathlib import Path

import pytest
import yaml

from label_runs import make_base
from makers import merged
from methods import make_code_model
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
    (key,) = document["spec"].get("objective") or document["spec"]["task"]
    return key


def test_every_objective_that_works_has_a_yaml():
    assert {key_of(document) for document in DOCUMENTS} == set(FACTS)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """What FineTuneJobs start from."""
    folder = tmp_path_factory.mktemp("base")
    return {"encoder": make_base(folder), "language": make_code_model(folder / "language", steps=1)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=[document["metadata"]["name"] for document in DOCUMENTS])
def test_a_yaml_of_the_page_trains_and_is_exported(tmp_path, request, document):
    assert not job_problems(parse_resource(document))
    if document["kind"] == "FineTuneJob":
        document = {**document, "spec": tuned_at_tiny_size(document, tmp_path, request.getfixturevalue("bases"))}
    else:
        document = at_tiny_size(document, tmp_path)
    run = resolve_train_run(parse_resource(document), settings_in(tmp_path), {})
    session, losses = open_alone(run)
    session.loop.train()
    assert set(losses.by_step) == {1, 2}
    assert set(losses.evaluations[2]) == set(run.evaluation.metrics)
    export_model(run, session.model, session.data.tokenizer, ALONE, tmp_path / "model")
    weights = "model.safetensors" if run.method.full else "adapter_model.safetensors"
    labels_or_whole = run.method.full or run.objective in ("classification", "tokenClassification")
    written = {path.name for path in (tmp_path / "model").iterdir()}
    assert {weights, *(["config.json"] if labels_or_whole else [])} <= written


def tuned_at_tiny_size(document, folder, bases):
    base = bases["language" if key_of(document) in ("preference", "distillation") else "encoder"]
    data = {"train": [{"uri": f"file://{write_jsonl(folder / 'rows.jsonl', rows_for(document))}"}]}
    training = {"steps": 2, "epochs": None, "sequenceLength": 32, "globalBatchSize": 4}
    changes = {"model": {"uri": f"file://{base}"}, "data": data, "training": training}
    if key_of(document) == "distillation":
        changes["task"] = {"distillation": {"teacher": {"uri": f"file://{base}"}}}
    return merged(document["spec"], changes)


def rows_for(document):
    columns = document["spec"]["data"].get("columns", {})
    text, label = columns.get("text", "text"), columns.get("label", "label")
    parity = ["even", "odd"]
    match key_of(document):
        case "classification" if document["spec"]["task"]["classification"]:
            return [{text: f"word {at}", label: [parity[at % 2]]} for at in range(40)]
        case "classification":
            return [{text: f"word {at}", label: parity[at % 2]} for at in range(40)]
        case "tokenClassification":
            return [{text: ["word", f"{at}"], label: ["O", "B-number"]} for at in range(40)]
        case "embedding":
            names = [columns[key] for key in ("prompt", "completion", "rejected")]
            return [dict(zip(names, (f"what is {at}", f"{at}", f"{at + 1}"), strict=True)) for at in range(40)]
        case "preference":
            chosen, rejected = (columns.get(key, key) for key in ("chosen", "rejected"))
            return [{"prompt": f"what is {at}?", chosen: f"{at}", rejected: f"{at + 1}"} for at in range(40)]
        case "distillation":
            return [{"text": f"the number {at} comes after {at - 1}"} for at in range(40)]


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
