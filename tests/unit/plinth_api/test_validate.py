"""Conflicts between fields: each is found before any machine is asked for, with its path and what to do."""

import pytest

from makers import make_fine_tune_job, make_model_service, make_pretrain_job, make_resolve_settings
from plinth_api.errors import InvalidSpec
from plinth_api.parse import Job
from plinth_api.resolve import resolve_serve_run, resolve_train_run

GATE = {"gate": [{"metric": "loss", "max": 3.0}]}


@pytest.mark.parametrize(
    ("job", "path", "message"),
    [
        pytest.param(
            make_pretrain_job(compute={"workers": 4, "parallelism": {"shard": 3}}),
            "spec.compute.parallelism",
            "the product of its sizes is 3, which does not divide workers = 4; change the sizes, or workers to a "
            "multiple of 3",
            id="parallelism does not divide",
        ),
        pytest.param(
            make_pretrain_job(compute={"workers": 4, "parallelism": {"shard": 1, "replicate": 2}}),
            "spec.compute.parallelism.replicate",
            "1 shards in 2 copies leave some of 4 workers without a part; leave replicate out, or set it to 4",
            id="workers without a part",
        ),
        pytest.param(
            make_pretrain_job(
                compute={"workers": 2, "perWorker": {"gpus": 1}}, training={"optimizer": {"name": "muon"}}
            ),
            "spec.training.optimizer.name",
            "not supported yet: spec.training.optimizer.name = muon with sharded weights; use adamw, or set "
            "spec.compute.parallelism.shard to 1",
            id="muon with shards",
        ),
        pytest.param(
            make_pretrain_job(
                compute={"workers": 2, "parallelism": {"tensor": 2}}, training={"optimizer": {"name": "muon"}}
            ),
            "spec.training.optimizer.name",
            "not supported yet: spec.training.optimizer.name = muon with sharded weights; use adamw, or set "
            "spec.compute.parallelism.tensor to 1",
            id="muon with split layers",
        ),
        pytest.param(
            make_fine_tune_job(
                compute={"workers": 2, "parallelism": {"shard": 2}}, training={"optimizer": {"name": "adamw8bit"}}
            ),
            "spec.training.optimizer.name",
            "not supported yet: spec.training.optimizer.name = adamw8bit with sharded weights; use adamw, or set "
            "spec.compute.parallelism.shard to 1",
            id="adamw8bit with shards",
        ),
        pytest.param(
            make_fine_tune_job(compute={"workers": 2, "perWorker": {"gpus": 1}}, method={"lora": None, "qlora": {}}),
            "spec.method.qlora",
            "not supported yet: spec.method.qlora with sharded weights; set spec.compute.parallelism.shard to 1: each "
            "worker then holds the model in 4 bits",
            id="4 bits with shards",
        ),
        pytest.param(
            make_pretrain_job(
                compute={"workers": 2, "parallelism": {"tensor": 2}}, objective={"causalLM": None, "maskedLM": {}}
            ),
            "spec.compute.parallelism.tensor",
            "not supported yet: spec.compute.parallelism.tensor for maskedLM; leave it out, and raise shard",
            id="split layers of another objective",
        ),
        pytest.param(
            make_fine_tune_job(compute={"workers": 2, "parallelism": {"tensor": 2}}),
            "spec.compute.parallelism.tensor",
            "not supported yet: spec.compute.parallelism.tensor with method lora; leave it out, and raise shard",
            id="split layers of an adapter",
        ),
        pytest.param(
            make_pretrain_job(compute={"workers": 6, "parallelism": {"tensor": 2}}, training={"globalBatchSize": 8}),
            "spec.training.globalBatchSize",
            "8 rows cannot be shared equally by 3 groups of workers; use 9",
            id="rows for groups",
        ),
        pytest.param(
            make_pretrain_job(compute={"workers": 3}),
            "spec.training.globalBatchSize",
            "8 rows cannot be shared equally by 3 workers; use 9",
            id="rows that cannot be shared",
        ),
        pytest.param(
            make_pretrain_job(compute={"workers": 64}),
            "spec.training.globalBatchSize",
            "8 rows cannot be shared equally by 64 workers; use 64",
            id="more workers than rows",
        ),
        pytest.param(
            make_pretrain_job(training={"microBatchSize": 3}),
            "spec.training.microBatchSize",
            "3 does not divide the 8 rows that one worker has in a step",
            id="a pass that does not divide",
        ),
        pytest.param(
            make_pretrain_job(training={"schedule": {"decaySteps": 3}}),
            "spec.training.schedule.decaySteps",
            "goes with wsd, not with cosine",
            id="decay without wsd",
        ),
        pytest.param(
            make_pretrain_job(training={"schedule": {"warmupSteps": 11}}),
            "spec.training.schedule.warmupSteps",
            "must be at most steps = 10",
            id="warm-up longer than the run",
        ),
        pytest.param(
            make_pretrain_job(training={"precision": "fp8"}),
            "spec.training.precision",
            "fp8 needs GPUs; use auto, or set spec.compute.perWorker.gpus",
            id="fp8 on CPUs",
        ),
        pytest.param(
            make_pretrain_job(evaluation={"metrics": ["loss", "bleu"]}),
            "spec.evaluation.metrics[1]",
            "nobody computes bleu; known: loss, perplexity",
            id="a metric that nobody computes",
        ),
        pytest.param(
            make_fine_tune_job(evaluation=GATE),
            "spec.evaluation.gate",
            "needs validation examples; set spec.data.validation",
            id="a gate without validation",
        ),
        pytest.param(
            make_pretrain_job(evaluation={**GATE, "metrics": ["perplexity"]}),
            "spec.evaluation.gate[0].metric",
            "loss is not in spec.evaluation.metrics (perplexity)",
            id="a gate on a metric that is not computed",
        ),
        pytest.param(
            make_pretrain_job(evaluation={"gate": [{"metric": "loss", "betterThan": "base"}]}),
            "spec.evaluation.gate[0].betterThan",
            "base is the model that training starts from; this job starts from random weights",
            id="better than random weights",
        ),
        pytest.param(
            make_pretrain_job(evaluation={"gate": [{"metric": "loss", "betterThan": "champion"}]}),
            "spec.evaluation.gate[0].betterThan",
            "champion is the model that output.alias names; set spec.output.alias",
            id="champion without an alias",
        ),
        pytest.param(
            make_pretrain_job(evaluation={"gate": [{"metric": "loss", "betterThan": "models:/tiny"}]}),
            "spec.evaluation.gate[0].betterThan",
            "models:/tiny must name a version or an alias: models:/<name>/<version> or models:/<name>@<alias>",
            id="a gate against a model without version",
        ),
        pytest.param(
            make_fine_tune_job(model={"uri": "models:/tiny"}),
            "spec.model.uri",
            "models:/tiny must name a version or an alias: models:/<name>/<version> or models:/<name>@<alias>",
            id="a model without version",
        ),
        pytest.param(
            make_fine_tune_job(model={"uri": "s3://bucket/model"}),
            "spec.model.uri",
            "not supported yet: spec.model.uri with s3:; use one of file, hf, models, pvc, runs",
            id="a model in a bucket",
        ),
        pytest.param(
            make_fine_tune_job(data={"train": [{"uri": "file:///a"}, {"uri": "runs:/1/a"}]}),
            "spec.data.train[1].uri",
            "not supported yet: spec.data.train[1].uri with runs:; use one of abfs, abfss, file, gs, hf, http, https, "
            "pvc, s3",
            id="data of a run",
        ),
        pytest.param(
            make_fine_tune_job(data={"validation": {"sources": [{"uri": "file://data"}]}}),
            "spec.data.validation.sources[0].uri",
            "file://data must hold an absolute path: file:///path",
            id="a relative path",
        ),
        pytest.param(
            make_fine_tune_job(checkpoint={"uri": "https://host/x"}),
            "spec.checkpoint.uri",
            "not supported yet: spec.checkpoint.uri with https:; use one of abfs, abfss, file, gs, pvc, s3",
            id="checkpoints where nothing can be written",
        ),
        pytest.param(
            make_fine_tune_job(checkpoint={"uri": "s3://key:secret@bucket/x"}),
            "spec.checkpoint.uri",
            "must not hold a password; put the credentials into a Secret and name it in secretRef",
            id="a bucket with its password",
        ),
        pytest.param(
            make_fine_tune_job(checkpoint={"resumeFrom": "pvc://claim/../other"}),
            "spec.checkpoint.resumeFrom",
            "pvc://claim/../other must not hold '..'",
            id="out of the claim",
        ),
        pytest.param(
            make_fine_tune_job(checkpoint={"uri": "pvc:///x"}),
            "spec.checkpoint.uri",
            "pvc:///x must name a claim and a path in it: pvc://claim/path",
            id="a claim without name",
        ),
        pytest.param(
            make_pretrain_job(model={"tokenizer": None}),
            "spec.model.tokenizer",
            "is required for a new language model: {train: {vocabSize: 4096}} or {uri: ...}",
            id="a new model without tokenizer",
        ),
        pytest.param(
            make_pretrain_job(model={"tokenizer": {"train": None, "uri": "models:/words"}}),
            "spec.model.tokenizer.uri",
            "models:/words must name a version or an alias: models:/<name>/<version> or models:/<name>@<alias>",
            id="a tokenizer without version",
        ),
        pytest.param(
            make_pretrain_job(model={"config": {"max_position_embeddings": 32}}),
            "spec.training.sequenceLength",
            "64 tokens do not fit the model's 32 positions; lower it, or raise "
            "spec.model.config.max_position_embeddings",
            id="longer than the positions",
        ),
        pytest.param(
            make_fine_tune_job(task={"instruction": None, "distillation": {"teacher": {"uri": "models:/large"}}}),
            "spec.task.distillation.teacher.uri",
            "models:/large must name a version or an alias: models:/<name>/<version> or models:/<name>@<alias>",
            id="a teacher without version",
        ),
        pytest.param(
            make_fine_tune_job(task={"instruction": None, "preference": {"dpo": {}}}, data={"format": "chat"}),
            "spec.data.format",
            "chat does not fit task preference; use preference",
            id="chats without rejected answers",
        ),
        pytest.param(
            make_fine_tune_job(data={"format": "text"}),
            "spec.data.format",
            "text does not fit task instruction; use chat or promptCompletion",
            id="text for instructions",
        ),
        pytest.param(
            make_fine_tune_job(method={"lora": None, "prefix": {}}, training={"activationCheckpointing": "full"}),
            "spec.training.activationCheckpointing",
            "does not go with method prefix, whose keys and values would be appended again when activations are "
            "computed again; set it to none, or use method prompt",
            id="activations of a prefix computed again",
        ),
    ],
)
def test_conflict(job: Job, path: str, message: str):
    with pytest.raises(InvalidSpec) as refusal:
        resolve_train_run(job, make_resolve_settings(), {})
    assert (path, message) in [(problem.path, problem.message) for problem in refusal.value.problems]


def test_conflict_of_a_service():
    with pytest.raises(InvalidSpec, match=r"spec.model.uri: models:/tiny must name a version"):
        resolve_serve_run(make_model_service(model={"uri": "models:/tiny"}), make_resolve_settings(), {})


def test_format_of_a_task_to_come_is_no_conflict():
    job = make_fine_tune_job(task={"instruction": None, "reward": {}}, data={"format": "text"})
    with pytest.raises(InvalidSpec) as refusal:
        resolve_train_run(job, make_resolve_settings(), {})
    assert [problem.path for problem in refusal.value.problems] == ["spec.task.reward"]
