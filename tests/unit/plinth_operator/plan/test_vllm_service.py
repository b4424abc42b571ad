"""A service that vLLM serves: another application, image and environment; what changes in place, and what does not."""

from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from plinth_api.engine_rules import SERVE_ENVIRONMENT, VLLM_ENVIRONMENT
from plinth_api.run import ServeRun
from plinth_operator.settings import Settings
from plinth_workloads.serving.vllm_config import DEPLOYMENT, SERVER_CLASS
from rendering import SETTINGS, children_of, head_of, make, ray_container, worker_of

WITH_VLLM = SETTINGS.model_copy(update={"vllm_image": "vllm:1", "vllm_head_memory": "5Gi"})
ASKED = {"engine": "vllm", "compute": {"perReplica": {"gpus": 2, "cpus": 4}, "tensorParallel": 2}}


def rayservice_of(settings: Settings = WITH_VLLM, **changes: Any) -> dict[str, Any]:
    return children_of(make("ModelService", **{**ASKED, **changes}), settings)["RayService"]


def application_of(**changes: Any) -> dict[str, Any]:
    (application,) = yaml.safe_load(rayservice_of(**changes)["spec"]["serveConfigV2"])["applications"]
    found: dict[str, Any] = application
    return found


def variables_of(template: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in ray_container(template)["env"]}


@pytest.mark.parametrize("scaling", [{}, {"minReplicas": 1, "maxReplicas": 4}])
def test_ray_serve_accepts_the_configuration(scaling: dict[str, Any]):
    config = yaml.safe_load(rayservice_of(scaling=scaling)["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    (deployment,) = application.deployments
    assert deployment.name == f"{SERVER_CLASS.partition(':')[2]}:{DEPLOYMENT}"


def test_the_application_is_that_of_ray_serve_llm_with_the_version_in_its_arguments():
    application = application_of()
    assert application["import_path"] == "plinth_workloads.serving.vllm_app:build_app"
    run = ServeRun.from_wire(application["args"])
    assert (run.engine, run.tensor_parallel, run.model.uri) == ("vllm", 2, "models:/team-a.tiny-chat/3")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"model": {"uri": "models:/other/1"}}, id="the model"),
        pytest.param({"adapters": [{"name": "docs", "uri": "models:/docs/1"}]}, id="the adapters"),
    ],
)
def test_a_version_and_its_adapters_are_arguments_which_start_new_replicas(changes: dict[str, Any]):
    assert application_of(**changes)["args"] != application_of()["args"]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"prompt": {"system": "Be brief."}}, id="the beginning of chats"),
        pytest.param({"limits": {"maxOutputTokens": 7}}, id="the limits"),
        pytest.param({"scaling": {"minReplicas": 2, "maxReplicas": 3}}, id="the scale"),
    ],
)
def test_what_is_no_argument_changes_in_place(changes: dict[str, Any]):
    before, after = application_of(), application_of(**changes)
    assert after["args"] == before["args"]
    assert after["deployments"] != before["deployments"]


def test_the_name_of_an_alias_is_no_argument_and_the_version_behind_it_is():
    application = application_of()
    assert application["args"]["model"] == {"uri": "models:/team-a.tiny-chat/3", "adapters": []}
    assert application["deployments"][0]["user_config"]["aliases"] == {"tiny": "champion"}


def test_serve_is_not_told_of_pods_which_it_refuses_beside_a_placement_group():
    (deployment,) = application_of()["deployments"]
    assert "max_replicas_per_node" not in deployment
    assert deployment["max_surge_percent"] == 100


def test_all_pods_have_the_image_with_vllm_and_the_flags_that_take_serve_out_of_the_way():
    for template in (
        head_of(make("ModelService", **ASKED), WITH_VLLM),
        worker_of(make("ModelService", **ASKED), WITH_VLLM),
    ):
        assert ray_container(template)["image"] == "vllm:1"
        assert variables_of(template).items() >= VLLM_ENVIRONMENT.items()
        assert template["metadata"]["labels"]["plinth.dev/engine"] == "vllm"


def test_the_head_has_room_for_vllm_where_ray_makes_the_application():
    assert ray_container(head_of(make("ModelService", **ASKED), WITH_VLLM))["resources"]["limits"] == {"memory": "5Gi"}


def test_an_image_of_the_users_own_and_a_variable_of_the_users_own_win():
    env = [{"name": "RAY_SERVE_THROUGHPUT_OPTIMIZED", "value": "0"}]
    asked = make("ModelService", **{**ASKED, "compute": {**ASKED["compute"], "image": "mine:1", "env": env}})
    worker = worker_of(asked, WITH_VLLM)
    assert ray_container(worker)["image"] == "mine:1"
    assert variables_of(worker)["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "0"


def test_a_service_of_the_torch_engine_is_as_it_was():
    asked = make("ModelService")
    assert children_of(asked, WITH_VLLM) == children_of(asked, SETTINGS)
    of_vllm = VLLM_ENVIRONMENT.keys() - SERVE_ENVIRONMENT.keys()
    assert not of_vllm & variables_of(worker_of(asked, WITH_VLLM)).keys()


def test_replicas_of_either_engine_answer_behind_haproxy_and_jobs_know_nothing_of_it():
    for template in (head_of(make("ModelService"), SETTINGS), worker_of(make("ModelService"), SETTINGS)):
        assert variables_of(template).items() >= SERVE_ENVIRONMENT.items()
    assert not SERVE_ENVIRONMENT.keys() & variables_of(worker_of(make("FineTuneJob"), SETTINGS)).keys()


def test_a_worker_offers_the_gpus_of_its_replica():
    group = rayservice_of()["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert group["rayStartParams"] == {"num-cpus": "4", "num-gpus": "2"}


def test_prometheus_can_tell_the_service_from_those_of_the_torch_engine():
    labels = rayservice_of()["spec"]["serveService"]["metadata"]["labels"]
    assert labels["plinth.dev/engine"] == "vllm"
    torch = children_of(make("ModelService"), WITH_VLLM)["RayService"]
    assert "plinth.dev/engine" not in torch["spec"]["serveService"]["metadata"]["labels"]
