"""Every YAML of docs/methods.md is valid as it stands, and in tiny sizes it trains, is exported and loads."""

import re
from pathlib import Path

import pytest

from makers import merged
from methods import make_code_model, write_prose
from plinth_api.adaptation import Method
from plinth_api.parse import parse_resource
from plinth_api.resolve import resolve_train_run
from plinth_api.support import NOT_SUPPORTED
from plinth_workloads.manifests import load_manifests
from plinth_workloads.models.load import load_for_inference
from plinth_workloads.train.export import export_model
from plinth_workloads.validation import problems_of
from training import ALONE, open_alone, settings_in

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
JOBS = {name: block for name, block in re.findall(r"^## (\w+)\n.*?^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_code_model(tmp_path_factory.mktemp("base"), steps=2)


def read(name, folder):
    """The job under a heading."""
    (manifest,) = load_manifests([write_text(folder / "job.yaml", JOBS[name])])
    return manifest.resource


def write_text(path, text):
    path.write_text(text)
    return path


def test_every_method_that_is_supported_has_a_job():
    assert PAGE.count("```yaml") == len(JOBS)
    refused = {path.removeprefix("spec.method.") for path in NOT_SUPPORTED["FineTuneJob"] if "spec.method." in path}
    assert set(JOBS) == {field.alias for field in Method.model_fields.values()} - refused
    assert all(f"`{name}`" in PAGE for name in refused)


@pytest.mark.parametrize("name", JOBS)
def test_the_job_is_valid_and_runs(tmp_path, base, name):
    job = read(name, tmp_path)
    assert job.spec.method.name == name
    assert problems_of(job) == ()
    tiny = {
        "model": {"uri": f"file://{base}"},
        "data": {"train": [{"uri": f"file://{write_prose(tmp_path / 'prose.jsonl')}"}]},
        "training": {"steps": 1, "sequenceLength": 32},
    }
    document = job.to_wire()
    smaller = parse_resource({**document, "spec": merged(document["spec"], tiny)})
    run = resolve_train_run(smaller, settings_in(tmp_path), {})
    session, losses = open_alone(run)
    session.loop.train()
    assert set(losses.by_step) == {1}
    folder = tmp_path / "model"
    export_model(run, session.model, session.data.tokenizer, ALONE, folder)
    assert (folder / "adapter_config.json").exists() == (name != "full" and not run.output.merge)
    load_for_inference(f"file://{folder}", tracking_uri="", cache_dir=tmp_path)
