"""From a resource to a run document: defaults made explicit, names translated, conflicts named."""

import copy
import dataclasses
import json
from typing import Any

import pytest

from makers import (
    DOCUMENT_MAKERS,
    Document,
    make_fine_tune_job,
    make_pretrain_job,
    make_resolve_settings,
)
from plinth_api.adaptation import LoRA, Method
from plinth_api.crd import Schema, resource_schema
from plinth_api.errors import InvalidSpec
from plinth_api.parse import KINDS, Job, parse_resource
from plinth_api.resolve import (
    micro_batch_size,
    referenced_aliases,
    resolve_train_run,
    resolve_workers,
    spec_hash,
)
from plinth_api.run import TrainRun

CLUSTER = make_resolve_settings(registry_prefix="team-a.", run_id="r1", tags={"plinth.cluster": "c"})


def resolve(job: Job, versions: dict[str, str] | None = None, **changes: Any) -> TrainRun:
    return resolve_train_run(job, make_resolve_settings(**changes), versions or {})


def test_defaults_of_pretraining_are_explicit():
    assert resolve(make_pretrain_job()).to_wire() == {
        "version": 1,
        "kind": "PretrainJob",
        "name": "tiny",
        "uid": "uid-1",
        "objective": "causalLM",
        "objectiveSettings": {},
        "model": {
            "architecture": "llama",
            "config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
            "tokenizerVocabSize": 512,
        },
        "method": {"full": {}},
        "data": {
            "train": [{"uri": "file:///data/corpus.jsonl", "weight": 1.0}],
            "validation": [],
            "validationFraction": 0.1,
            "columns": {},
            "format": "text",
            "task": "pretrain",
        },
        "training": {
            "steps": 10,
            "sequenceLength": 64,
            "globalBatchSize": 8,
            "microBatchSize": 8,
            "autoMicroBatchSize": False,
            "learningRate": 3e-4,
            "schedule": "cosine",
            "warmupSteps": 0,
            "finalLearningRateFraction": 0.1,
            "optimizer": "adamw",
            "weightDecay": 0.1,
            "beta1": 0.9,
            "beta2": 0.95,
            "epsilon": 1e-8,
            "maxGradNorm": 1.0,
            "precision": "fp32",
            "packing": True,
            "compile": False,
            "activationCheckpointing": "none",
            "seed": 42,
        },
        "workers": {"numWorkers": 1, "shard": 1, "replicate": 1, "tensor": 1, "gpus": 0, "cpus": 1.0},
        "checkpoint": {"uri": "file:///checkpoints/uid-1", "keep": 2},
        "evaluation": {"metrics": ["loss", "perplexity"], "gate": []},
        "output": {"model": "tiny", "merge": False},
        "tracking": {
            "uri": "http://mlflow",
            "experiment": "tiny",
            "runName": "tiny",
            "tags": {"plinth.uid": "uid-1", "plinth.kind": "PretrainJob"},
        },
        "watchdog": {"onNaN": "Fail"},
        "workDir": "/work",
    }


def test_run_document_survives_json():
    run = resolve(make_fine_tune_job())
    assert TrainRun.model_validate_json(run.model_dump_json(by_alias=True)) == run


def test_defaults_on_gpus():
    run = resolve(make_pretrain_job(compute={"workers": 4, "perWorker": {"gpus": 1, "cpus": "500m", "memory": "1Gi"}}))
    assert (run.training.precision, run.training.compile) == ("bf16", True)
    assert (run.workers.shard, run.workers.replicate, run.workers.cpus, run.workers.memory_bytes) == (4, 1, 0.5, 2**30)


def test_fine_tuning():
    run = resolve(
        make_fine_tune_job(
            data={"columns": {"messages": "chat"}, "format": "chat", "validation": {"sources": [{"uri": "pvc://c/v"}]}},
            output={"merge": True, "alias": "champion"},
        )
    )
    assert run.method == Method(lora=LoRA())
    assert (run.training.weight_decay, run.data.task, run.data.format) == (0.0, "instruction", "chat")
    assert run.data.columns == {"messages": "chat"}
    assert [source.uri for source in run.data.validation] == ["file:///volumes/c/v"]
    assert run.data.validation_fraction is None
    assert (run.output.merge, run.output.alias) == (True, "champion")


@pytest.mark.parametrize("name", ["full", "lora", "dora", "ia3", "prefix", "prompt", "promptEncoder"])
def test_the_method_alone_is_in_the_document(name: str):
    run = resolve(make_fine_tune_job(method={"lora": None, name: {}}))
    assert list(json.loads(run.model_dump_json(by_alias=True))["method"]) == [name]
    assert TrainRun.model_validate_json(run.model_dump_json(by_alias=True)) == run
    assert run.method.name == name


@pytest.mark.parametrize(
    ("method", "packing"),
    [
        pytest.param({"full": {}}, True, id="full"),
        pytest.param({"ia3": {}}, True, id="ia3"),
        pytest.param({"prefix": {}}, False, id="prefix"),
        pytest.param({"prompt": {}}, False, id="prompt"),
        pytest.param({"promptEncoder": {}}, False, id="promptEncoder"),
    ],
)
def test_packing_follows_the_method_when_it_is_left_out(method: dict[str, Any], packing: bool):
    assert resolve(make_fine_tune_job(method={"lora": None, **method})).training.packing is packing
    off = make_fine_tune_job(method={"lora": None, **method}, training={"packing": False})
    assert resolve(off).training.packing is False


def test_names_on_a_cluster():
    run = resolve_train_run(make_fine_tune_job(), CLUSTER, {})
    assert run.output.model == "team-a.tiny-chat"
    assert run.tracking.experiment == "team-a.tiny-chat"
    assert run.tracking.run_id == "r1"
    assert run.tracking.tags == {"plinth.cluster": "c", "plinth.uid": "uid-1", "plinth.kind": "FineTuneJob"}
    assert run.model.uri == "models:/team-a.tiny/1"


def test_the_experiment_of_one_namespace_is_never_that_of_another():
    job = make_fine_tune_job(tracking={"experiment": "team-b.chats"})
    assert resolve_train_run(job, CLUSTER, {}).tracking.experiment == "team-a.team-b.chats"
    assert resolve(job).tracking.experiment == "team-b.chats"


@pytest.mark.parametrize(
    ("uri", "resolved"),
    [
        pytest.param("models:/tiny@champion", "models:/team-a.tiny/7", id="an alias becomes a version"),
        pytest.param("models:/team-a.tiny@champion", "models:/team-a.tiny/7", id="a prefix that is there already"),
        pytest.param("models:/tiny/3", "models:/team-a.tiny/3", id="a version stays"),
        pytest.param("hf://org/name@main", "hf://org/name@main", id="a hub"),
        pytest.param("pvc://claim/model", "file:///volumes/claim/model", id="a claim becomes a path"),
        pytest.param("file:///model", "file:///model", id="a path stays"),
    ],
)
def test_model_uri(uri: str, resolved: str):
    versions = {"models:/team-a.tiny@champion": "models:/team-a.tiny/7"}
    assert resolve_train_run(make_fine_tune_job(model={"uri": uri}), CLUSTER, versions).model.uri == resolved


def test_claims_become_paths_everywhere():
    run = resolve(
        make_pretrain_job(
            data={"train": [{"uri": "pvc://c/*.jsonl"}]},
            checkpoint={"uri": "pvc://c/checkpoints/", "resumeFrom": "pvc://c/old"},
            model={"tokenizer": {"train": None, "uri": "pvc://c/tokenizer"}},
        )
    )
    assert run.data.train[0].uri == "file:///volumes/c/*.jsonl"
    assert run.checkpoint.uri == "file:///volumes/c/checkpoints/uid-1"
    assert run.checkpoint.resume_from == "file:///volumes/c/old"
    assert run.model.tokenizer_uri == "file:///volumes/c/tokenizer"


def test_aliases_that_must_be_known():
    job = make_pretrain_job(
        model={"tokenizer": {"train": None, "uri": "models:/words@new"}},
        evaluation={
            "gate": [
                {"metric": "loss", "betterThan": "models:/tiny@champion"},
                {"metric": "perplexity", "betterThan": "models:/tiny@champion"},
                {"metric": "loss", "betterThan": "models:/tiny/1"},
                {"metric": "loss", "max": 2.0},
            ]
        },
    )
    aliases = ("models:/a.words@new", "models:/a.tiny@champion")
    assert referenced_aliases(job, "a.") == aliases
    versions = {alias: alias.split("@")[0] + "/9" for alias in aliases}
    run = resolve_train_run(job, make_resolve_settings(registry_prefix="a."), versions)
    assert run.model.tokenizer_uri == "models:/a.words/9"
    assert [rule.better_than for rule in run.evaluation.gate] == [
        "models:/a.tiny/9",
        "models:/a.tiny/9",
        "models:/a.tiny/1",
        None,
    ]


def test_a_teacher_is_pinned_as_the_model_is():
    teacher = {"uri": "models:/large@champion", "secretRef": {"name": "hub"}}
    job = make_fine_tune_job(task={"instruction": None, "distillation": {"teacher": teacher, "alpha": 0.7}})
    assert referenced_aliases(job, "a.") == ("models:/a.large@champion",)
    versions = {"models:/a.large@champion": "models:/a.large/4"}
    run = resolve_train_run(job, make_resolve_settings(registry_prefix="a."), versions)
    assert (run.objective, run.data.task) == ("distillation", "distillation")
    assert run.objective_settings == {"teacher": {"uri": "models:/a.large/4"}, "temperature": 1.0, "alpha": 0.7}
    assert run.evaluation.metrics == ("loss", "perplexity", "kl")


def test_a_row_of_a_preference_is_two_sequences():
    dpo = {"instruction": None, "preference": {"dpo": {"beta": 0.2}}}
    run = resolve(make_fine_tune_job(task=dpo, training={"sequenceLength": 4096}))
    assert (run.objective, run.objective_settings) == ("preference", {"dpo": {"beta": 0.2}})
    assert (run.data.task, run.training.packing, run.training.micro_batch_size) == ("preference", False, 2)


def test_champion_and_base_are_left_to_the_workload():
    job = make_fine_tune_job(
        data={"validation": {"fraction": 0.1}},
        output={"alias": "champion"},
        evaluation={"gate": [{"metric": "loss", "betterThan": "champion"}, {"metric": "loss", "betterThan": "base"}]},
    )
    assert referenced_aliases(job, "") == ()
    assert [rule.better_than for rule in resolve(job).evaluation.gate] == ["champion", "base"]


@pytest.mark.parametrize(
    ("rows", "length", "size"),
    [
        pytest.param(16, 1024, 16, id="all rows fit"),
        pytest.param(32, 1024, 16, id="half of the rows fit"),
        pytest.param(12, 2048, 6, id="a divisor below the limit"),
        pytest.param(7, 4096, 1, id="a prime"),
        pytest.param(8, 1000000, 1, id="not even one row fits"),
    ],
)
def test_micro_batch_size(rows: int, length: int, size: int):
    assert micro_batch_size(rows, length) == size


def test_given_micro_batch_size_is_taken():
    training = resolve(make_pretrain_job(training={"microBatchSize": 2})).training
    assert (training.micro_batch_size, training.auto_micro_batch_size) == (2, False)


def test_auto_micro_batch_size_is_left_to_the_workers_with_their_rows_as_the_most():
    job = make_pretrain_job(training={"microBatchSize": "auto"}, compute={"workers": 2})
    training = resolve(job).training
    assert (training.micro_batch_size, training.auto_micro_batch_size) == (4, True)


@pytest.mark.parametrize(
    ("compute", "shard", "replicate"),
    [
        pytest.param({"workers": 4}, 1, 4, id="CPUs replicate"),
        pytest.param({"workers": 4, "perWorker": {"gpus": 1}}, 4, 1, id="GPUs shard"),
        pytest.param({"workers": 4, "perWorker": {"gpus": 1}, "parallelism": {}}, 4, 1, id="no sizes"),
        pytest.param({"workers": 4, "perWorker": {"gpus": 1}, "parallelism": {"tensor": 1}}, 4, 1, id="tensor of 1"),
        pytest.param({"workers": 4, "perWorker": {"gpus": 1}, "parallelism": {"replicate": 4}}, 1, 4, id="replicate"),
        pytest.param({"workers": 4, "parallelism": {"shard": 4}}, 4, 1, id="shard on CPUs"),
        pytest.param({"workers": 4, "parallelism": {"shard": 1, "replicate": 4}}, 1, 4, id="both"),
        pytest.param({"workers": 4, "parallelism": {"replicate": 2}}, 2, 2, id="shards in copies"),
        pytest.param({"workers": 8, "parallelism": {"tensor": 2}}, 1, 4, id="tensor on CPUs"),
        pytest.param({"workers": 8, "perWorker": {"gpus": 1}, "parallelism": {"tensor": 2}}, 4, 1, id="tensor"),
        pytest.param({"workers": 8, "parallelism": {"tensor": 2, "shard": 2}}, 2, 2, id="all three"),
    ],
)
def test_workers(compute: Document, shard: int, replicate: int):
    workers = resolve_workers(make_pretrain_job(compute=compute).spec.compute)
    assert (workers.shard, workers.replicate) == (shard, replicate)
    assert workers.shard * workers.replicate * workers.tensor == workers.num_workers


@pytest.mark.parametrize("text", ["y" * 600_000, "\u6587" * 200_000], ids=["ASCII", "three bytes a character"])
def test_run_document_has_a_limit(text: str):
    with pytest.raises(InvalidSpec, match="spec: is too large: the run document has a limit of 512 KiB"):
        resolve(make_pretrain_job(model={"config": {"x": text}}))


def defaulted(document: Any, schema: Schema) -> Any:
    """The document as the API server stores it: with every default of the schema written out."""
    if isinstance(document, list):
        return [defaulted(item, schema["items"]) for item in document]
    if not isinstance(document, dict):
        return document
    result = copy.deepcopy(document)
    for name, inner in schema.get("properties", {}).items():
        if name not in result and "default" in inner:
            result[name] = inner["default"]
        if name in result:
            result[name] = defaulted(result[name], inner)
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_hash_and_run_are_the_same_with_defaults_written_out(kind: str):
    document = (
        DOCUMENT_MAKERS[kind](compute={}, rollout={"canary": {}})
        if kind == "ModelService"
        else (DOCUMENT_MAKERS[kind](compute={"accelerator": {}}, training={"schedule": {}}))
    )
    stored = defaulted(document, resource_schema(kind))
    assert stored != document
    assert spec_hash(parse_resource(stored)) == spec_hash(parse_resource(document))


def test_hash_is_the_same_for_null_and_for_1e3():
    document = DOCUMENT_MAKERS["PretrainJob"](training={"steps": 1000})
    other = copy.deepcopy(document)
    other["spec"]["training"] |= {"steps": 1e3, "seed": None, "compile": None}
    other["spec"]["suspend"] = None
    assert spec_hash(parse_resource(other)) == spec_hash(parse_resource(document))


def test_hash_changes_with_kind_name_and_spec():
    hashes = {
        spec_hash(make_pretrain_job()),
        spec_hash(make_pretrain_job(name="other")),
        spec_hash(make_pretrain_job(training={"steps": 11})),
        spec_hash(make_fine_tune_job()),
    }
    assert len(hashes) == 4
    assert all(len(digits) == 8 for digits in hashes)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CLUSTER.uid = "other"
