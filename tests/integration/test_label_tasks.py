"""Tasks with heads and embeddings on real data: each beats a stated trivial baseline and obeys the laws of training."""

import json
import random
from typing import Any

import httpx
import openai
import pytest

from label_runs import kinds_of_tokens, lines_of_modules, majority_share, make_base, make_task_run
from objective_runs import validation_batches, write_docstrings
from plinth_workloads.serving.encoder_engine import EncoderEngine
from plinth_workloads.serving.text_models import load_text_model
from plinth_workloads.train.export import export_model
from served_here import NAME, service_here
from training import ALONE, open_alone
from training_laws import assert_passes_change_nothing, assert_stopping_changes_nothing

pytestmark = pytest.mark.integration

CLASSIFICATION: dict[str, Any] = {"classification": {}}
WORDS: dict[str, Any] = {"tokenClassification": {}}
EMBEDDING = {"embedding": {"temperature": 0.1}}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: make_base(folder / name, name, steps=20) for name in ("bert", "llama")}


def pairs(folder):
    """Signatures as queries, docstrings as what answers them, and for some another docstring as what does not."""
    rows = [json.loads(line) for line in write_docstrings(folder / "pairs.jsonl").read_text().splitlines()]
    others = random.Random(0).sample(rows, len(rows))
    return [
        {"query": row["prompt"], "positive": row["completion"], "negative": other["completion"] if at % 2 else None}
        for at, (row, other) in enumerate(zip(rows, others, strict=True))
        if row["completion"] != other["completion"]
    ]


ROWS = {"classification": lambda folder: lines_of_modules(), "tokenClassification": lambda folder: kinds_of_tokens()}
ROWS["embedding"] = pairs


def rows_for(task, folder, *, every=1):
    folder.mkdir(parents=True, exist_ok=True)
    (name,) = task
    return ROWS[name](folder)[::every]


@pytest.mark.parametrize(
    ("method", "steps", "learning_rate"), [({"full": {}}, 60, 5e-3), ({"lora": {"r": 16}}, 150, 3e-3)]
)
def test_modules_are_told_apart_by_their_lines_better_than_by_the_most_frequent_also_when_served(
    tmp_path, bases, method, steps, learning_rate
):
    rows = lines_of_modules()
    run = make_task_run(
        tmp_path,
        bases["llama"],
        CLASSIFICATION,
        rows,
        method=method,
        training={
            "steps": steps,
            "globalBatchSize": 16,
            "learningRate": learning_rate,
            "sequenceLength": 48,
            "schedule": {"warmupSteps": 10},
        },
        evaluation={"everySteps": steps},
    )
    session, losses = open_alone(run)
    session.loop.train()
    found = losses.evaluations[steps]
    assert majority_share([row["label"] for row in rows]) == pytest.approx(1 / 3)
    assert found["accuracy"] > 0.55
    assert found["macroF1"] > 0.5
    export_model(run, session.model, session.data.tokenizer, ALONE, tmp_path / "served")
    assert_served(run, tmp_path / "served", rows[::4])


def assert_served(run, folder, rows):
    """A service of the exported classifier tells them apart as well."""
    options = {"device": "cpu", "tracking_uri": run.tracking.uri, "cache_dir": folder.parent}
    with service_here(lambda: EncoderEngine(load_text_model(folder, "the export", "classify", **options))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="local", max_retries=0)
        body = {"model": NAME, "input": [row["text"] for row in rows]}
        answer = client.post("/classify", body=body, cast_to=httpx.Response).json()["data"]
        with pytest.raises(openai.BadRequestError, match="ask /v1/classify"):
            client.embeddings.create(model=NAME, input="a")
    found = [one["label"] for one in answer]
    assert [sum(one["probs"]) for one in answer] == pytest.approx([1] * len(rows), abs=1e-4)
    assert sum(label == row["label"] for label, row in zip(found, rows, strict=True)) > 0.55 * len(rows)


def test_kinds_of_tokens_are_found_far_better_than_the_most_frequent(tmp_path, bases):
    rows = kinds_of_tokens()
    run = make_task_run(
        tmp_path,
        bases["bert"],
        WORDS,
        rows,
        training={"steps": 60, "learningRate": 5e-3},
        evaluation={"everySteps": 60, "metrics": ["loss", "accuracy", "macroF1", "entityF1"]},
    )
    session, losses = open_alone(run)
    session.loop.train()
    trivial = majority_share([label for row in rows for label in row["labels"]])
    found = losses.evaluations[60]
    assert "train/loss" in losses.reported
    assert "train/perplexity" not in losses.reported
    assert trivial < 0.55
    assert found["accuracy"] > 0.85 > trivial + 0.25
    assert found["entityF1"] > 0.75


def test_docstrings_are_found_by_signatures_far_more_often_than_by_chance(tmp_path, bases):
    run = make_task_run(
        tmp_path,
        bases["bert"],
        EMBEDDING,
        rows_for(EMBEDDING, tmp_path),
        training={"steps": 60, "globalBatchSize": 32, "sequenceLength": 32, "learningRate": 3e-3},
        evaluation={"everySteps": 60, "gate": [{"metric": "mrr", "betterThan": "base"}]},
    )
    session, losses = open_alone(run)
    session.loop.train()
    sizes = [batch.num_targets for batch in validation_batches(session)]
    chance = len(sizes) / sum(sizes)
    assert losses.evaluations[60]["accuracy"] > 3 * chance
    assert losses.evaluations[60]["mrr"] > losses.evaluations[60]["accuracy"]
    assert losses.evaluations[60]["mrr"] > session.loop.state.evaluations["base"]["mrr"] + 0.05


@pytest.mark.parametrize(
    ("task", "base", "method", "every"),
    [
        (CLASSIFICATION, "bert", {"lora": {"r": 2, "dropout": 0.1}}, 5),
        (CLASSIFICATION, "bert", {"qlora": {"r": 2}}, 5),
        (WORDS, "llama", {"full": {}}, 1),
        (EMBEDDING, "bert", {"dora": {"r": 2}}, 5),
    ],
    ids=["classification", "classification in 4 bits", "tokenClassification", "embedding"],
)
def test_stopping_changes_nothing(tmp_path, bases, task, base, method, every):
    rows = rows_for(task, tmp_path, every=every)

    def make_run(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return make_task_run(folder, bases[base], task, rows, method={"lora": None, **method})

    assert_stopping_changes_nothing(tmp_path, make_run)


@pytest.mark.parametrize("task", [CLASSIFICATION, WORDS], ids=["classification", "tokenClassification"])
def test_the_size_of_a_pass_changes_nothing(tmp_path, bases, task):
    rows = rows_for(task, tmp_path)
    assert_passes_change_nothing(
        tmp_path,
        lambda folder, size: make_task_run(
            folder, bases["bert"], task, rows, training={"steps": 4, "microBatchSize": size, "sequenceLength": 64}
        ),
    )
