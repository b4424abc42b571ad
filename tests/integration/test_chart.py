"""The chart, rendered by the real Helm and installed into a real API server."""

import pytest

from charts import (
    CHART,
    MLFLOW,
    TRACKING_URI,
    chart_arguments,
    container,
    deployment,
    helm,
    installed,
    of_kind,
    refusal,
    rendered,
)
from cluster.control_plane import wait_until
from plinth_operator.settings import read_settings

pytestmark = pytest.mark.integration

SCOPES = [
    pytest.param(MLFLOW, id="whole cluster"),
    pytest.param({**MLFLOW, "namespace": "team-a"}, id="one namespace"),
    pytest.param({}, id="MLflow elsewhere"),
]
ROLES = ("ClusterRole", "Role")


def granted_to_the_operator(documents):
    """The roles that a binding gives to the operator's service account."""
    (account,) = of_kind(documents, "ServiceAccount")
    names = set()
    for binding in of_kind(documents, "ClusterRoleBinding", "RoleBinding"):
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": "ops"}
        ]
        names.add((binding["roleRef"]["kind"], binding["roleRef"]["name"]))
    return [role for role in of_kind(documents, *ROLES) if (role["kind"], role["metadata"]["name"]) in names]


@pytest.mark.parametrize("values", SCOPES)
def test_helm_finds_nothing_to_complain_of(values):
    answer = helm("lint", "--strict", str(CHART), *chart_arguments(values))
    assert answer.returncode == 0, answer.stdout
    assert "0 chart(s) failed" in answer.stdout


@pytest.mark.parametrize("values", SCOPES)
def test_every_object_says_what_it_belongs_to(values):
    documents = rendered(values, release="blue")
    assert len(documents) >= 7
    for document in documents:
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "plinth"
        assert labels["app.kubernetes.io/instance"] == "blue"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert document["metadata"]["name"].startswith("blue-plinth")


@pytest.mark.parametrize("values", SCOPES)
def test_no_right_is_a_wildcard_and_none_is_over_secrets(values):
    documents = rendered(values)
    rules = [rule for role in of_kind(documents, *ROLES) for rule in role["rules"]]
    assert len(rules) > 10
    for rule in rules:
        words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"], *rule.get("nonResourceURLs", ())]
        assert not [word for word in words if "*" in word]
        assert "secrets" not in rule["resources"]
        assert not {"impersonate", "bind", "escalate"} & set(rule["verbs"])


def test_the_operator_of_one_namespace_has_roles_there_and_no_cluster_role():
    documents = rendered({"namespace": "team-a"})
    assert [(role["kind"], role["metadata"]["namespace"]) for role in granted_to_the_operator(documents)] == [
        ("Role", "team-a"),
        ("Role", "ops"),
    ]
    assert of_kind(documents, "ClusterRoleBinding") == []
    whole, one = (granted_to_the_operator(found)[0] for found in (rendered(), documents))
    assert (whole["kind"], whole["rules"]) == ("ClusterRole", one["rules"])


@pytest.mark.parametrize("values", SCOPES)
def test_every_pod_follows_the_restricted_standard_with_a_root_for_reading_only(values):
    deployments = of_kind(rendered(values), "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod")
    assert {entry["kind"] for entry in deployments} == {"Deployment"}
    for entry in deployments:
        spec = entry["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        kinds = {kind for volume in spec.get("volumes", ()) for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim"}
        for one in [*spec["containers"], *spec.get("initContainers", ())]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert one["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in one["resources"]["limits"]
            assert "readinessProbe" in one
            assert "livenessProbe" in one


def test_what_administrators_make_themselves_can_be_left_out():
    documents = rendered(
        {
            "rbac": {"create": False, "aggregate": False},
            "serviceAccount": {"create": False, "name": "theirs"},
        }
    )
    assert of_kind(documents, "ServiceAccount", "ClusterRoleBinding", "RoleBinding", *ROLES) == []
    assert deployment(documents)["spec"]["template"]["spec"]["serviceAccountName"] == "theirs"


def test_values_become_settings_that_the_operator_takes():
    values = {
        "namespace": "team-a",
        "settings.queueName": "team-a",
        "settings.leaseSeconds": 20,
        "settings.requestsPerSecond": 12.5,
        "settings.networkPolicies": False,
        "settings.storageClaim": "shared",
        "settings.fsGroup": 0,
        "workloadImage": {"repository": "example.invalid/workloads", "tag": "7"},
    }
    operator = container(rendered(values))
    fixed = {entry["name"]: entry["value"] for entry in operator["env"] if "value" in entry}
    settings = read_settings(fixed)
    assert settings.model_dump(exclude_defaults=True) == {
        "namespace": "team-a",
        "tracking_uri": TRACKING_URI,
        "tracking_secret": "plinth-mlflow",
        "workload_image": "example.invalid/workloads:7",
        "storage_claim": "shared",
        "fs_group": 0,
        "control_namespaces": "ops,kuberay-system",
        "queue_name": "team-a",
        "lease_seconds": 20,
        "requests_per_second": 12.5,
        "network_policies": False,
        "probe_port": operator["ports"][0]["containerPort"],
    }
    (downward,) = (entry for entry in operator["env"] if "value" not in entry)
    assert downward["name"] == "PLINTH_OPERATOR_NAMESPACE"
    assert downward["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace"


@pytest.mark.parametrize("group", [0, None])
def test_a_cluster_may_decide_on_the_group_of_volumes_itself(group):
    operator = container(rendered({"settings.fsGroup": group}))
    settings = read_settings({entry["name"]: entry["value"] for entry in operator["env"] if "value" in entry})
    assert settings.fs_group == 0


def test_what_a_cluster_asks_of_pods_reaches_them():
    wanted = {
        "tolerations": [{"key": "of", "operator": "Exists"}],
        "nodeSelector": {"of": "platform"},
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "system-cluster-critical",
    }
    secret = [{"secretRef": {"name": "mlflow"}}]
    values = {
        **wanted,
        "image": {"repository": "example.invalid/operator", "tag": "9", "pullSecrets": [{"name": "registry"}]},
        "envFrom": secret,
        "podLabels": {"of": "label"},
        "podAnnotations": {"of": "annotation"},
        "serviceAccount.annotations": {"of": "account"},
        "resources": {"limits": {"memory": "1Gi"}},
        "replicas": 2,
    }
    documents = rendered(values)
    template = deployment(documents)["spec"]["template"]
    operator = container(documents)
    assert deployment(documents)["spec"]["replicas"] == 2
    assert {key: template["spec"][key] for key in wanted} == wanted
    assert template["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert (operator["image"], operator["envFrom"]) == ("example.invalid/operator:9", secret)
    assert operator["resources"]["limits"] == {"memory": "1Gi"}
    assert template["metadata"]["annotations"] == {"of": "annotation"}
    assert (
        template["metadata"]["labels"].items()
        >= {"of": "label", **deployment(documents)["spec"]["selector"]["matchLabels"]}.items()
    )
    (account,) = of_kind(documents, "ServiceAccount")
    assert account["metadata"]["annotations"] == {"of": "account"}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"settings.trackingUri": ""}, "settings.trackingUri: is required where mlflow.enabled is false"),
        ({"mlflow.allowedHosts": ["*"]}, "at '/mlflow/allowedHosts/0'"),
        ({"mlflow.auth.defaultPermission": "ADMIN"}, "at '/mlflow/auth/defaultPermission'"),
        ({"mlflow.artifacts.destination": "/tmp"}, "at '/mlflow/artifacts/destination'"),
        ({"settings.leaseSecond": 3}, "at '/settings': additional properties 'leaseSecond' not allowed"),
        ({"settings.workers": 0}, "at '/settings/workers': minimum"),
        ({"replica": 2}, "at '': additional properties 'replica' not allowed"),
    ],
)
def test_values_that_mean_nothing_are_refused_with_their_path(values, sentence):
    assert sentence in refusal(values)


def test_its_pods_are_let_into_a_restricted_namespace(control_plane, namespace):
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    control_plane.resource("v1", "Namespace").patch(
        name=namespace, body=label, content_type="application/merge-patch+json"
    )
    values = {**MLFLOW, "namespace": namespace, "rbac.aggregate": False}
    with installed(control_plane, namespace, values, release="restricted"):
        pods = control_plane.resource("v1", "Pod")

        def found():
            names = {pod.spec.containers[0].name for pod in pods.get(namespace=namespace).items}
            return names == {"operator", "mlflow"}

        wait_until(found, 60, "the pods of both Deployments")
