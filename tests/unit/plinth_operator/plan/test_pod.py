from typing import Any

import pytest

from plinth_api.errors import InvalidSpec
from plinth_operator.settings import Settings
from rendering import (
    SETTINGS,
    UID,
    children_of,
    head_of,
    make,
    ray_container,
    submitter_of,
    worker_of,
)

JOBS = ("PretrainJob", "FineTuneJob")
KINDS = (*JOBS, "ModelService")


def templates_of(kind: str, settings: Settings = SETTINGS, **changes: Any) -> dict[str, Any]:
    resource = make(kind, **changes)
    found = {"head": head_of(resource, settings), "worker": worker_of(resource, settings)}
    return {**found, "submitter": submitter_of(resource, settings)} if kind in JOBS else found


def variables_of(template: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in ray_container(template)["env"]}


def mounts_of(template: dict[str, Any]) -> dict[str, tuple[Any, bool]]:
    """What is mounted where, and whether for reading only."""
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    return {
        mount["mountPath"]: (
            {key: value for key, value in volumes[mount["name"]].items() if key != "name"},
            mount.get("readOnly", False),
        )
        for mount in ray_container(template)["volumeMounts"]
    }


def claims_of(template: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    return {
        path: (volume["persistentVolumeClaim"]["claimName"], read_only)
        for path, (volume, read_only) in mounts_of(template).items()
        if "persistentVolumeClaim" in volume
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_pod_follows_the_restricted_standard(kind: str):
    for template in templates_of(kind).values():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["restartPolicy"] == "Never"
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }


@pytest.mark.parametrize("kind", KINDS)
def test_every_pod_is_found_by_our_labels_whatever_the_user_merges(kind: str):
    patch = {"metadata": {"labels": {"plinth.dev/uid": "other", "team": "a"}, "annotations": {"x": "y"}}}
    for role, template in templates_of(kind, compute={"podTemplate": patch}).items():
        assert template["metadata"]["labels"]["plinth.dev/uid"] == UID
        assert role == "submitter" or template["metadata"]["labels"]["team"] == "a"
        assert role == "submitter" or template["metadata"]["annotations"] == {"x": "y"}
    for template in templates_of(kind, compute={"podTemplate": {"metadata": None}}).values():
        assert template["metadata"]["labels"]["plinth.dev/uid"] == UID


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patch", [{"spec": None}, {"spec": {"containers": None}}])
def test_a_pod_template_without_the_ray_container_is_refused(kind: str, patch: dict[str, Any]):
    with pytest.raises(InvalidSpec, match=r"podTemplate: must leave spec.containers with the container ray"):
        templates_of(kind, compute={"podTemplate": patch})


def test_a_pod_template_reaches_head_and_workers_and_leaves_the_heads_resources():
    container = {"name": "ray", "imagePullPolicy": "Always", "resources": {"limits": {"rdma/hca": "1"}}}
    job = make("PretrainJob", compute={"podTemplate": {"spec": {"containers": [container, {"name": "log"}]}}})
    head, worker = head_of(job), worker_of(job)
    for template in (head, worker):
        assert [one["name"] for one in template["spec"]["containers"]] == ["ray", "log"]
        assert ray_container(template)["imagePullPolicy"] == "Always"
    assert ray_container(worker)["resources"]["limits"] == {"rdma/hca": "1"}
    assert ray_container(head)["resources"] == {
        "requests": {"cpu": "500m", "memory": "2Gi"},
        "limits": {"memory": "2Gi"},
    }
    assert len(submitter_of(job)["spec"]["containers"]) == 1


@pytest.mark.parametrize(
    ("wanted", "resources"),
    [
        ({"cpus": "500m"}, {"requests": {"cpu": "500m"}}),
        ({"cpus": 2, "memory": "4096Mi"}, {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}),
        (
            {"cpus": 8, "memory": "96Gi", "gpus": 2},
            {
                "requests": {"cpu": "8", "memory": "96Gi", "nvidia.com/gpu": "2"},
                "limits": {"memory": "96Gi", "nvidia.com/gpu": "2"},
            },
        ),
    ],
)
def test_memory_and_gpus_are_bounded_and_cpus_reserved(wanted: dict[str, Any], resources: dict[str, Any]):
    assert ray_container(worker_of(make("PretrainJob", compute={"perWorker": wanted})))["resources"] == resources
    assert ray_container(worker_of(make("ModelService", compute={"perReplica": wanted})))["resources"] == resources


def test_an_accelerator_is_asked_for_by_its_resource_and_its_product():
    accelerator = {"product": "MI300X", "resource": "amd.com/gpu"}
    job = make(
        "PretrainJob", compute={"perWorker": {"gpus": 1}, "accelerator": accelerator, "nodeSelector": {"a": "b"}}
    )
    worker = worker_of(job)
    assert ray_container(worker)["resources"]["limits"] == {"amd.com/gpu": "1"}
    assert worker["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "MI300X", "a": "b"}
    assert head_of(job)["spec"]["nodeSelector"] == {"a": "b"}


def test_tolerations_and_priority_go_to_every_pod():
    compute = {"tolerations": [{"key": "gpu", "operator": "Exists"}], "priorityClassName": "high"}
    for template in templates_of("PretrainJob", compute=compute).values():
        assert template["spec"]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
        assert template["spec"]["priorityClassName"] == "high"


def test_only_the_head_of_a_service_has_a_token_and_none_of_the_users():
    compute = {"serviceAccountName": "mine", "imagePullSecrets": [{"name": "registry"}]}
    for kind in KINDS:
        for role, template in templates_of(kind, compute=compute).items():
            scales = kind == "ModelService" and role == "head"
            assert template["spec"]["automountServiceAccountToken"] is scales
            assert template["spec"].get("serviceAccountName") == (None if scales else "mine")
            assert template["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_pods_of_a_job_have_time_to_save():
    job = make("PretrainJob")
    for template in (head_of(job), worker_of(job)):
        assert template["spec"]["terminationGracePeriodSeconds"] == 90
        command = ray_container(template)["lifecycle"]["preStop"]["exec"]["command"]
        drain = ["python", "-m", "plinth_workloads.train.drain", "/etc/plinth/run.json"]
        assert command == [*drain, "--timeout-seconds", "60"]
        assert variables_of(template)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "20"
        assert variables_of(template)["RAY_JOB_STOP_WAIT_TIME_S"] == "60"


def test_pods_of_a_service_leave_the_time_to_ray():
    for template in templates_of("ModelService").values():
        assert "lifecycle" not in ray_container(template)
        assert variables_of(template)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "60"


def test_a_single_worker_prefers_the_node_of_its_head():
    for count, expected in ((1, True), (2, False)):
        worker = worker_of(make("PretrainJob", compute={"workers": count}))
        assert ("affinity" in worker["spec"]) is expected


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_written_lies_on_a_volume(kind: str):
    resource = make(kind)
    for template in (head_of(resource), worker_of(resource)):
        mounts = mounts_of(template)
        writable = {path for path, (_, read_only) in mounts.items() if not read_only}
        assert {"/tmp", "/dev/shm"} <= writable
        assert mounts["/dev/shm"] == ({"emptyDir": {"medium": "Memory"}}, False)
        for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"):
            assert any(variables_of(template)[name].startswith(f"{path}/") for path in writable)


def test_a_job_reads_its_document_from_the_config_map_of_its_attempt():
    children = children_of(make("PretrainJob"), attempt=3)
    worker = children["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]
    name = children["ConfigMap"]["metadata"]["name"]
    assert name == "tiny-abcde-3"
    assert mounts_of(worker)["/etc/plinth"] == ({"configMap": {"name": name}}, True)
    assert "/etc/plinth" not in mounts_of(worker_of(make("ModelService")))


def test_replicas_read_their_api_keys_from_a_secret_that_may_come_later():
    service = make("ModelService", access={"apiKeySecretRef": {"name": "keys"}})
    mounted = ({"secret": {"secretName": "keys", "optional": True}}, True)
    assert mounts_of(worker_of(service))["/etc/plinth-api-keys"] == mounted
    head = templates_of("ModelService", access={"apiKeySecretRef": {"name": "keys"}})["head"]
    assert "/etc/plinth-api-keys" not in mounts_of(head)
    assert "apiKeysDir: /etc/plinth-api-keys" in children_of(service)["RayService"]["spec"]["serveConfigV2"]
    assert "apiKeysDir" not in children_of(make("ModelService"))["RayService"]["spec"]["serveConfigV2"]


def test_claims_are_mounted_where_they_are_needed_and_only_the_saved_one_for_writing():
    job = make(
        "PretrainJob",
        data={"train": [{"uri": "pvc://corpora/a"}, {"uri": "pvc://saved/b"}]},
        checkpoint={"uri": "pvc://saved/c"},
        compute={
            "volumes": [
                {"claimName": "corpora", "mountPath": "/again"},
                {"claimName": "notes", "mountPath": "/notes", "readOnly": True},
            ]
        },
    )
    everywhere = {
        "/mnt/plinth/volumes/saved": ("saved", False),
        "/again": ("corpora", False),
        "/notes": ("notes", True),
    }
    assert claims_of(head_of(job)) == everywhere
    assert claims_of(worker_of(job)) == {**everywhere, "/mnt/plinth/volumes/corpora": ("corpora", True)}
    names = [volume["name"] for volume in worker_of(job)["spec"]["volumes"]]
    assert len(names) == len(set(names))


def test_checkpoints_in_a_folder_need_no_claim_of_ours():
    job = make(
        "PretrainJob",
        checkpoint={"uri": "file:///nfs/x"},
        compute={"volumes": [{"claimName": "nfs", "mountPath": "/nfs"}]},
    )
    assert claims_of(worker_of(job)) == {"/nfs": ("nfs", False)}


def test_replicas_read_models_and_the_head_of_a_service_needs_none():
    service = make("ModelService", model={"uri": "pvc://models/x"})
    assert claims_of(worker_of(service)) == {"/mnt/plinth/volumes/models": ("models", True)}
    assert claims_of(head_of(service)) == {}


def test_replicas_keep_models_on_the_claim_of_the_settings():
    service, settings = make("ModelService"), SETTINGS.model_copy(update={"model_cache_claim": "models"})
    assert claims_of(worker_of(service, settings)) == {"/mnt/plinth/models": ("models", False)}
    assert claims_of(head_of(service, settings)) == {}
    config = children_of(service, settings)["RayService"]["spec"]["serveConfigV2"]
    assert "modelCacheDir: /mnt/plinth/models" in config
    assert "modelCacheDir" not in children_of(service)["RayService"]["spec"]["serveConfigV2"]


def test_secrets_are_named_once_each_and_never_read():
    secret = {"secretRef": {"name": "hub"}}
    job = make(
        "PretrainJob",
        model={"architecture": None, "config": None, "tokenizer": None, "uri": "hf://org/name", **secret},
        data={
            "train": [{"uri": "hf://datasets/a", **secret}, {"uri": "s3://b/c", "secretRef": {"name": "bucket"}}],
            "validation": {
                "fraction": None,
                "sources": [{"uri": "s3://b/d", "secretRef": {"name": "validation"}}],
            },
        },
        checkpoint={"uri": "s3://b/e", "secretRef": {"name": "checkpoints"}},
        tracking={"secretRef": {"name": "mlflow"}},
    )
    names = ["hub", "bucket", "validation", "checkpoints", "mlflow"]
    for template in (head_of(job), worker_of(job)):
        assert ray_container(template)["envFrom"] == [{"secretRef": {"name": name}} for name in names]


def test_the_secret_of_a_teacher_is_named():
    teacher = {"uri": "hf://org/large", "secretRef": {"name": "hub"}}
    job = make("FineTuneJob", task={"instruction": None, "distillation": {"teacher": teacher}})
    for template in (head_of(job), worker_of(job)):
        assert ray_container(template)["envFrom"] == [{"secretRef": {"name": "hub"}}]


@pytest.mark.parametrize("kind", KINDS)
def test_who_names_no_credentials_of_mlflow_gets_those_of_the_namespace_where_it_has_some(kind: str):
    settings = SETTINGS.model_copy(update={"tracking_secret": "plinth-mlflow"})
    optional = {"secretRef": {"name": "plinth-mlflow", "optional": True}}
    for template in (head_of(make(kind), settings), worker_of(make(kind), settings)):
        assert ray_container(template)["envFrom"] == [optional]


def test_credentials_that_a_job_names_are_its_only_ones_and_must_exist():
    settings = SETTINGS.model_copy(update={"tracking_secret": "plinth-mlflow"})
    for name in ("own", "plinth-mlflow"):
        job = make("PretrainJob", tracking={"secretRef": {"name": name}})
        assert ray_container(worker_of(job, settings))["envFrom"] == [{"secretRef": {"name": name}}]


def test_a_secret_that_is_needed_for_another_reason_is_not_optional():
    settings = SETTINGS.model_copy(update={"tracking_secret": "all"})
    service = make("ModelService", model={"uri": "hf://org/name", "secretRef": {"name": "all"}})
    assert ray_container(worker_of(service, settings))["envFrom"] == [{"secretRef": {"name": "all"}}]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (1000, {"fsGroup": 1000, "fsGroupChangePolicy": "OnRootMismatch"}),
        (2000, {"fsGroup": 2000, "fsGroupChangePolicy": "OnRootMismatch"}),
        (0, {}),
        (-1, {}),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_volumes_belong_to_the_group_of_the_settings_or_to_the_cluster_s(
    kind: str, setting: int, expected: dict[str, Any]
):
    settings = SETTINGS.model_copy(update={"fs_group": setting})
    restricted = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for template in templates_of(kind, settings).values():
        assert template["spec"]["securityContext"] == {**restricted, **expected}


def test_no_empty_list_is_written():
    assert "envFrom" not in ray_container(worker_of(make("ModelService")))


def test_the_users_variables_win():
    env = [
        {"name": "HF_HOME", "value": "/elsewhere"},
        {"name": "TOKEN", "secretKeyRef": {"name": "secret", "key": "token"}},
        {"name": "EMPTY"},
    ]
    variables = variables_of(worker_of(make("PretrainJob", compute={"env": env})))
    assert variables["HF_HOME"] == "/elsewhere"
    assert variables["TOKEN"] == {"secretKeyRef": {"name": "secret", "key": "token"}}
    assert variables["EMPTY"] == ""
    assert variables["MLFLOW_TRACKING_URI"] == "http://mlflow"


def test_without_an_address_of_mlflow_there_is_no_variable_of_it():
    settings = SETTINGS.model_copy(update={"tracking_uri": ""})
    assert "MLFLOW_TRACKING_URI" not in variables_of(worker_of(make("PretrainJob"), settings))
