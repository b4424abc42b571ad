"""Tasks with heads and embeddings over two processes, in copies and in shards: trained and exported as by one."""

import json

import pytest
import torch
from safetensors.torch import load_file

from label_runs import kinds_of_tokens, lines_of_modules, make_base, make_task_run
from plinth_workloads.train.export import export_model
from spread_runs import train_all
from training import ALONE, open_alone, write_run

pytestmark = pytest.mark.integration

SPREADS = {
    "copies": {"workers": 2},
    "shards": {"workers": 2, "parallelism": {"shard": 2}},
}
QUERIES = [
    {"query": f"def f{at}(x)", "positive": f"Return {at}.", "negative": None if at % 3 else f"Raise {at}."}
    for at in range(40)
]
CASES = {
    "classification": ("bert", {"classification": {}}, {"lora": {"r": 2}}, lines_of_modules(most=20)),
    "tokenClassification": ("bert", {"tokenClassification": {}}, {"full": {}}, kinds_of_tokens(most=40)),
    "embedding": ("bert", {"embedding": {"temperature": 0.2}}, {"dora": {"r": 2}}, QUERIES),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def bases(folder):
    return {name: make_base(folder / name, name) for name in ("bert", "llama")}


def make_run(folder, bases, case, **spec):
    base, task, method, rows = CASES[case]
    folder.mkdir(parents=True)
    return make_task_run(
        folder, bases[base], task, rows, method={"lora": None, **method}, checkpoint={"everySteps": 2}, **spec
    )


@pytest.fixture(scope="module")
def spread(folder, bases):
    """Every task in copies and in shards, trained, resumed and exported by two processes."""
    runs = [
        write_run(make_run(folder / name / case, bases, case, compute=compute), folder / name / case)
        for name, compute in SPREADS.items()
        for case in CASES
    ]
    train_all(runs, processes=2)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_and_export_what_one_does(folder, bases, spread, case):
    here = folder / "alone" / case
    session, _ = open_alone(make_run(here, bases, case))
    session.loop.train()
    export_model(session.run, session.model, session.data.tokenizer, ALONE, here / "model")
    expected = tensors_in(here)
    for name in SPREADS:
        found = tensors_in(folder / name / case)
        assert set(found) == set(expected)
        for tensor, value in expected.items():
            torch.testing.assert_close(found[tensor], value, rtol=0, atol=1e-4)
        checkpoint = max((folder / name / case / "checkpoints").glob("**/step-*/state.json"))
        last = max(session.loop.state.evaluations, key=int)
        assert read_evaluation(checkpoint, last) == pytest.approx(session.loop.state.evaluations[last], abs=1e-3)


def tensors_in(folder):
    (file,) = (folder / "model").glob("*.safetensors")
    return load_file(file)


def read_evaluation(state, step):
    return json.loads(state.read_text())["evaluations"][step]
