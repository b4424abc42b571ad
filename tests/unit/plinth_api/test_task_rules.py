"""Tasks of fine-tuning with an objective of their own: what follows from them, and what contradicts them."""

import pytest

from makers import make_fine_tune_job, make_resolve_settings
from plinth_api.errors import InvalidSpec
from plinth_api.resolve import resolve_train_run


def make_job(task, settings=None, **spec):
    return make_fine_tune_job(task={"instruction": None, task: settings or {}}, **spec)


def resolved(job):
    return resolve_train_run(job, make_resolve_settings(), {})


@pytest.mark.parametrize(
    ("task", "settings", "metrics"),
    [
        ("classification", {"multiLabel": True}, ("loss", "accuracy", "macroF1")),
        ("tokenClassification", {}, ("loss", "accuracy", "macroF1")),
        ("embedding", {"temperature": 0.1}, ("loss", "accuracy", "mrr")),
    ],
)
def test_the_run_has_the_tasks_objective_metrics_and_unpacked_rows(task, settings, metrics):
    run = resolved(make_job(task, settings))
    assert (run.objective, run.objective_settings, run.data.task) == (task, settings, task)
    assert run.evaluation.metrics == metrics
    assert not run.training.packing


def test_texts_that_are_compared_share_a_pass():
    run = resolved(make_job("embedding", training={"globalBatchSize": 64, "sequenceLength": 4096}))
    assert run.training.micro_batch_size == 64


@pytest.mark.parametrize(
    ("job", "path", "message"),
    [
        pytest.param(
            make_job("classification", method={"prompt": {}}),
            "spec.method.prompt",
            "has no meaning for task classification: virtual tokens stand before a model that generates text; use "
            "lora, dora, ia3 or full",
            id="virtual tokens",
        ),
        pytest.param(
            make_job("tokenClassification", data={"columns": {"completion": "tags"}}),
            "spec.data.columns.completion",
            "task tokenClassification reads label, text; leave completion out",
            id="column of another task",
        ),
        pytest.param(
            make_job("classification", data={"format": "chat"}),
            "spec.data.format",
            "chat does not fit task classification; use labelled",
            id="format of another task",
        ),
        pytest.param(
            make_job("classification", evaluation={"metrics": ["perplexity"]}),
            "spec.evaluation.metrics[0]",
            "nobody computes perplexity; known: accuracy, loss, macroF1",
            id="metric of another task",
        ),
        pytest.param(
            make_job("classification", training={"packing": True}),
            "spec.training.packing",
            "task classification has rows of its own, which hold no other example; leave it out",
            id="packed rows",
        ),
        pytest.param(
            make_job("embedding", training={"microBatchSize": 4}),
            "spec.training.microBatchSize",
            "task embedding compares all rows of a step, so a pass holds the 8 rows of a worker; leave it out",
            id="several passes",
        ),
    ],
)
def test_what_contradicts_the_task_is_refused(job, path, message):
    with pytest.raises(InvalidSpec) as refusal:
        resolved(job)
    assert [(problem.path, problem.message) for problem in refusal.value.problems] == [(path, message)]


@pytest.mark.parametrize("task", ["instruction", "completion"])
def test_tasks_of_language_models_train_one(task):
    run = resolved(make_fine_tune_job(task={"instruction": None, task: {}}))
    assert (run.objective, run.objective_settings, run.data.task) == ("causalLM", {}, task)
