from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from plinth_operator.plan.rayservice import cluster_hash
from plinth_workloads.serving.app import DEPLOYMENT, build_app
from plinth_workloads.serving.idle_policy import ScaleToZero
from rendering import children_of, cluster_of, make

CLUSTER_HASH = "plinth.dev/cluster-hash"


def rayservice_of(**changes: Any) -> dict[str, Any]:
    return children_of(make("ModelService", **changes))["RayService"]


def application_of(**changes: Any) -> dict[str, Any]:
    (application,) = yaml.safe_load(rayservice_of(**changes)["spec"]["serveConfigV2"])["applications"]
    found: dict[str, Any] = application
    return found


def deployment_of(**changes: Any) -> dict[str, Any]:
    (deployment,) = application_of(**changes)["deployments"]
    found: dict[str, Any] = deployment
    return found


@pytest.mark.parametrize("scaling", [{}, {"minReplicas": 1, "maxReplicas": 4}, {"minReplicas": 0}])
def test_ray_serve_accepts_the_configuration(scaling: dict[str, Any]):
    config = yaml.safe_load(rayservice_of(scaling=scaling)["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.name == "plinth"
    assert application.route_prefix == "/"
    (deployment,) = application.deployments
    assert deployment.name == DEPLOYMENT


def test_the_application_is_made_from_its_arguments():
    application = application_of(compute={"perReplica": {"cpus": 2, "gpus": 1}})
    assert application["import_path"] == f"{build_app.__module__}:{build_app.__name__}"
    assert build_app(application["args"]) is not None


def test_version_and_scaling_are_no_arguments_which_would_start_new_replicas():
    first = application_of(model={"uri": "models:/tiny/1"})
    second = application_of(model={"uri": "models:/tiny/2"}, scaling={"minReplicas": 2, "maxReplicas": 3})
    assert first["args"] == second["args"]
    assert first["deployments"] != second["deployments"]


def test_the_version_is_pinned_in_user_config():
    assert deployment_of()["user_config"]["uri"] == "models:/team-a.tiny-chat/3"


def test_the_alias_that_is_followed_changes_in_place():
    assert deployment_of()["user_config"]["aliases"] == {"tiny": "champion"}
    assert deployment_of(model={"uri": "models:/tiny/1"})["user_config"]["aliases"] == {}


def test_limits_change_in_place():
    before, after = application_of(), application_of(limits={"maxOutputTokens": 7, "maxBodyBytes": "1Mi"})
    assert after["args"] == before["args"]
    assert after["deployments"][0]["user_config"]["limits"] == {
        "maxBodyBytes": 2**20,
        "maxOutputTokens": 7,
        "requestTimeoutSeconds": 600,
    }


@pytest.mark.parametrize(
    ("scaling", "options"),
    [
        ({"minReplicas": 3, "maxReplicas": 3}, {"num_replicas": 3}),
        (
            {"minReplicas": 1, "maxReplicas": 3, "targetOngoingRequests": 8},
            {"autoscaling_config": {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 8}},
        ),
        (
            {"minReplicas": 0, "idleSeconds": 60},
            {
                "autoscaling_config": {
                    "min_replicas": 0,
                    "max_replicas": 1,
                    "target_ongoing_requests": 16,
                    "downscale_to_zero_delay_s": 0,
                    "policy": {
                        "policy_function": f"{ScaleToZero.__module__}:{ScaleToZero.__name__}",
                        "policy_kwargs": {"idle_seconds": 60},
                    },
                }
            },
        ),
    ],
)
def test_scaling_is_the_deployments(scaling: dict[str, Any], options: dict[str, Any]):
    deployment = deployment_of(scaling=scaling)
    assert {key: deployment[key] for key in deployment if key in ("num_replicas", "autoscaling_config")} == options


@pytest.mark.parametrize(("change", "percent"), [("Surge", 100), ("Recreate", 0)])
def test_new_replicas_start_before_the_old_ones_stop_where_there_is_room(change: str, percent: int):
    deployment = deployment_of(rollout={"clusterChange": change})
    assert deployment["max_surge_percent"] == percent
    assert deployment["max_replicas_per_node"] == 1


def test_kuberays_service_has_a_name_that_a_user_can_tell():
    service = rayservice_of()["spec"]["serveService"]
    assert service["metadata"]["name"] == "tiny-serve"
    assert service["spec"]["ports"] == [{"name": "serve", "protocol": "TCP", "port": 8000}]


def test_replicas_answer_probes_on_a_port_that_is_not_served():
    assert application_of()["args"]["probePort"] == 8001


def test_what_scales_to_zero_holds_requests_and_answers_those_that_meet_its_end():
    deployment = deployment_of(scaling={"minReplicas": 0}, limits={"requestTimeoutSeconds": 900})
    assert deployment["user_config"]["holdsRequests"] is True
    assert deployment["graceful_shutdown_timeout_s"] == 900
    assert not {"holdsRequests", "graceful_shutdown_timeout_s"} & {*deployment_of(), *deployment_of()["user_config"]}
    assert application_of(scaling={"minReplicas": 0})["args"] == application_of()["args"]


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"scaling": {"minReplicas": 2, "maxReplicas": 5}}, True),
        ({"scaling": {"minReplicas": 0, "maxReplicas": 5}}, True),
        ({"model": {"uri": "models:/other/1"}}, True),
        ({"compute": {"tolerations": [{"key": "gpu"}]}}, True),
        ({"compute": {"image": "other"}}, False),
        ({"compute": {"perReplica": {"memory": "9Gi"}}}, False),
        ({"compute": {"nodeSelector": {"a": "b"}}}, False),
    ],
)
def test_the_cluster_hash_changes_when_kuberay_starts_a_second_cluster(change: dict[str, Any], is_same: bool):
    before, after = rayservice_of()["metadata"], rayservice_of(**change)["metadata"]
    assert (before["annotations"][CLUSTER_HASH] == after["annotations"][CLUSTER_HASH]) is is_same
    assert before["annotations"]["plinth.dev/hash"] != after["annotations"]["plinth.dev/hash"]


def test_the_cluster_hash_leaves_the_cluster_as_it_is():
    cluster = cluster_of(make("ModelService"))
    cluster_hash(cluster)
    assert cluster["workerGroupSpecs"][0]["maxReplicas"] == 1024
