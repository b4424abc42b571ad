"""What does not work yet is refused with its path; what only a cluster acts on is known by name."""

import pytest

from makers import make_fine_tune_job, make_model_service, make_pretrain_job
from plinth_api.fields import fields_of
from plinth_api.parse import KINDS, Resource
from plinth_api.support import CLUSTER_ONLY, INSTEAD, NOT_SUPPORTED, cluster_only_fields, unsupported_problems


@pytest.mark.parametrize(
    ("resource", "problems"),
    [
        pytest.param(make_pretrain_job(), [], id="nothing"),
        pytest.param(
            make_pretrain_job(objective={"causalLM": None, "diffusion": {}}),
            ["spec.objective.diffusion: not supported yet: spec.objective.diffusion"],
            id="a member of a union",
        ),
        pytest.param(
            make_pretrain_job(training={"precision": "fp8"}),
            ["spec.training.precision: not supported yet: spec.training.precision = fp8"],
            id="a value",
        ),
        pytest.param(
            make_pretrain_job(training={"optimizer": {"name": "adamw"}}, watchdog={"onNaN": "Fail"}),
            [],
            id="other values",
        ),
        pytest.param(
            make_pretrain_job(data={"train": [{"uri": "file:///a"}, {"uri": "file:///b", "format": "webdataset"}]}),
            ["spec.data.train[1].format: not supported yet: spec.data.train[1].format = webdataset"],
            id="a value in a list",
        ),
        pytest.param(
            make_pretrain_job(compute={"workers": 2, "parallelism": {"tensor": 1, "context": 2}}),
            ["spec.compute.parallelism.context: not supported yet: spec.compute.parallelism.context = 2"],
            id="a range of values",
        ),
        pytest.param(
            make_fine_tune_job(data={"prepare": {"dedup": "exact"}}),
            ["spec.data.prepare: not supported yet: spec.data.prepare"],
            id="a block is named once",
        ),
        pytest.param(
            make_fine_tune_job(method={"lora": None, "adaptionPrompt": {}}),
            [
                "spec.method.adaptionPrompt: not supported yet: spec.method.adaptionPrompt; use prefix, which trains "
                "keys and values before every layer"
            ],
            id="a field with another in its place",
        ),
        pytest.param(
            make_model_service(compute={"queueName": "team-a"}),
            ["spec.compute.queueName: not supported yet: spec.compute.queueName"],
            id="a field of one kind",
        ),
    ],
)
def test_unsupported(resource: Resource, problems: list[str]):
    assert [str(problem) for problem in unsupported_problems(resource)] == problems


def test_cluster_only_fields_that_are_set():
    job = make_pretrain_job(
        compute={"queueName": "team-a", "env": [{"name": "A", "value": "b"}]},
        data={"train": [{"uri": "s3://a/b", "secretRef": {"name": "s"}}]},
    )
    assert set(cluster_only_fields(job)) == {
        "spec.compute.queueName",
        "spec.compute.env",
        "spec.data.train[0].secretRef",
    }
    assert cluster_only_fields(make_pretrain_job()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_tables_name_fields_and_values_that_exist(kind: str):
    paths = {field.path: field for field in fields_of(kind)}
    assert set(NOT_SUPPORTED[kind]) <= set(paths)
    assert set(CLUSTER_ONLY[kind]) <= set(paths)
    assert set(INSTEAD) <= set(NOT_SUPPORTED["FineTuneJob"])
    assert not set(NOT_SUPPORTED[kind]) & set(CLUSTER_ONLY[kind])
