from typing import Any

import pytest

from rendering import cluster_of, make


@pytest.mark.parametrize(
    ("wanted", "params"),
    [
        ({"cpus": 4}, {"num-cpus": "4"}),
        ({"cpus": "1500m"}, {"num-cpus": "2"}),
        ({"cpus": "250m"}, {"num-cpus": "1"}),
        ({"cpus": 0, "gpus": 8}, {"num-cpus": "1", "num-gpus": "8"}),
    ],
)
def test_a_worker_offers_whole_cpus_and_its_gpus(wanted: dict[str, Any], params: dict[str, str]):
    (group,) = cluster_of(make("PretrainJob", compute={"perWorker": wanted}))["workerGroupSpecs"]
    assert group["rayStartParams"] == params


@pytest.mark.parametrize("kind", ["PretrainJob", "FineTuneJob", "ModelService"])
def test_a_head_computes_nothing_and_asks_for_a_token(kind: str):
    cluster = cluster_of(make(kind))
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == "2.60.0"


def test_a_job_has_as_many_workers_as_it_asks_for():
    cluster = cluster_of(make("PretrainJob", compute={"workers": 4}))
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (4, 4, 4)
    assert "enableInTreeAutoscaling" not in cluster


def test_an_elastic_job_begins_with_its_workers_and_leaves_the_rest_to_rays_autoscaler():
    cluster = cluster_of(make("PretrainJob", compute={"workers": 4, "elastic": {"minWorkers": 2, "maxWorkers": 8}}))
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (2, 4, 8)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert group["template"]["spec"]["automountServiceAccountToken"] is False


def test_a_service_scales_within_one_cluster():
    cluster = cluster_of(make("ModelService", scaling={"minReplicas": 2, "maxReplicas": 7}))
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (0, 2, 1024)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["autoscalerOptions"]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_service_that_scales_to_zero_begins_with_a_worker_and_may_have_none():
    (group,) = cluster_of(make("ModelService", scaling={"minReplicas": 0}))["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"]) == (0, 1)
