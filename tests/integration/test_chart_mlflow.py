"""The chart's MLflow: rendered, and its password over upgrades in a real API server."""

import base64
import json

import pytest

from charts import (
    CHART,
    MLFLOW,
    chart_arguments,
    container,
    deployment,
    helm,
    installed,
    of_kind,
    refusal,
    rendered,
    upgraded,
)
from cluster.control_plane import wait_until
from plinth_operator.settings import read_settings

pytestmark = pytest.mark.integration

SECRET = "plinth-mlflow-admin"
S3 = {"mlflow.artifacts.destination": "s3://models/mlflow", "networkPolicy.mlflowEgress": [{"ports": [{"port": 443}]}]}


def variables(one):
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in one["env"]}


def from_secret(name, key):
    return {"secretKeyRef": {"name": name, "key": key}}


def secret_of(documents):
    (found,) = of_kind(documents, "Secret")
    return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}


def test_the_operator_and_the_workloads_are_told_where_it_is():
    documents = rendered(MLFLOW)
    (service,) = of_kind(documents, "Service", component="mlflow")
    operator = variables(container(documents))
    settings = read_settings({name: value for name, value in operator.items() if isinstance(value, str)})
    port = service["spec"]["ports"][0]["port"]
    assert settings.tracking_uri == f"http://{service['metadata']['name']}.ops.svc:{port}"
    assert settings.tracking_users
    assert operator["MLFLOW_TRACKING_USERNAME"] == from_secret(SECRET, "username")
    assert operator["MLFLOW_TRACKING_PASSWORD"] == from_secret(SECRET, "password")


@pytest.mark.parametrize("has_users", [True, False])
def test_an_mlflow_elsewhere_has_the_users_that_it_is_said_to_have(has_users):
    operator = variables(container(rendered({"settings.trackingUsers": has_users})))
    assert operator["PLINTH_TRACKING_USERS"] == str(has_users).lower()


def test_it_keeps_everything_on_its_volume_and_runs_alone():
    documents = rendered(MLFLOW)
    (claim,) = of_kind(documents, "PersistentVolumeClaim")
    spec = deployment(documents, "mlflow")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    volumes = {volume["name"]: volume for volume in spec["template"]["spec"]["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}}
    server = container(documents, "mlflow")
    (place,) = (mount["mountPath"] for mount in server["volumeMounts"] if mount["name"] == "data")
    (config,) = of_kind(documents, "ConfigMap")
    assert variables(server)["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{place}/mlflow.db"
    assert f"--artifacts-destination={place}/artifacts" in server["args"]
    assert f"database_uri = sqlite:///{place}/auth.db" in config["data"]["basic_auth.ini"]


def test_its_claim_is_as_the_values_say():
    persistence = {"size": "5Gi", "storageClass": "fast", "accessMode": "ReadWriteMany", "keep": False}
    documents = rendered({**MLFLOW, **{f"mlflow.persistence.{key}": value for key, value in persistence.items()}})
    (claim,) = of_kind(documents, "PersistentVolumeClaim")
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "5Gi"}},
    }
    assert "annotations" not in claim["metadata"]
    assert "annotations" not in of_kind(documents, "Secret")[0]["metadata"]


def test_a_claim_that_is_there_is_used():
    documents = rendered({**MLFLOW, "mlflow.persistence.existingClaim": "ours"})
    assert of_kind(documents, "PersistentVolumeClaim") == []
    volumes = deployment(documents, "mlflow")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "ours"}} in volumes


def test_claim_and_password_stay_together_when_the_release_goes():
    for document in of_kind(rendered(MLFLOW), "PersistentVolumeClaim", "Secret"):
        assert document["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_generated_words_are_long_and_each_its_own():
    first, second = secret_of(rendered(MLFLOW)), secret_of(rendered(MLFLOW))
    assert first.keys() == {"username", "password", "flaskSecretKey"}
    assert len(first["password"]) >= 32
    assert len(first["flaskSecretKey"]) >= 32
    assert len({first["password"], first["flaskSecretKey"], second["password"], second["flaskSecretKey"]}) == 4


def test_no_secret_is_anywhere_but_in_the_secret():
    documents = rendered(MLFLOW)
    words = secret_of(documents)
    elsewhere = json.dumps([document for document in documents if document["kind"] != "Secret"])
    for key in ("password", "flaskSecretKey"):
        assert words[key] not in elsewhere
        assert base64.b64encode(words[key].encode()).decode() not in elsewhere
    for component in ("operator", "mlflow"):
        for name, value in variables(container(documents, component)).items():
            if "PASSWORD" in name or name.endswith(("_KEY", "_TOKEN")):
                assert value.keys() == {"secretKeyRef"}
    (config,) = of_kind(documents, "ConfigMap")
    assert "admin_password" not in config["data"]["basic_auth.ini"]


def test_a_secret_that_is_there_is_used_by_both():
    documents = rendered({**MLFLOW, "mlflow.auth.existingSecret": "theirs"})
    assert of_kind(documents, "Secret") == []
    server, operator = variables(container(documents, "mlflow")), variables(container(documents))
    assert server["MLFLOW_AUTH_ADMIN_USERNAME"] == from_secret("theirs", "username")
    assert server["MLFLOW_AUTH_ADMIN_PASSWORD"] == from_secret("theirs", "password")
    assert server["MLFLOW_FLASK_SERVER_SECRET_KEY"] == from_secret("theirs", "flaskSecretKey")
    assert operator["MLFLOW_TRACKING_PASSWORD"] == from_secret("theirs", "password")


def test_database_and_object_store_come_by_secrets():
    aws = [{"secretRef": {"name": "bucket"}}]
    values = {**MLFLOW, **S3, "mlflow.backendStore.existingSecret": "database", "mlflow.envFrom": aws}
    server = container(rendered(values), "mlflow")
    assert variables(server)["MLFLOW_BACKEND_STORE_URI"] == from_secret("database", "uri")
    assert "--artifacts-destination=s3://models/mlflow" in server["args"]
    assert server["envFrom"] == aws


def test_what_it_could_not_reach_is_named():
    sentence = "networkPolicy.mlflowEgress: say how MLflow reaches"
    for values in ({"mlflow.artifacts.destination": "s3://b/c"}, {"mlflow.backendStore.existingSecret": "database"}):
        assert sentence in refusal({**MLFLOW, **values})
        of_kind(rendered({**MLFLOW, **values, "networkPolicy.enabled": False}), "Deployment")


def test_names_of_users_are_let_in_and_their_pages_may_write():
    server = variables(container(rendered({**MLFLOW, "mlflow.allowedHosts": ["mlflow.example.com"]}), "mlflow"))
    hosts = server["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"mlflow.example.com", "mlflow.example.com:*", "plinth-mlflow.ops.svc:*", "localhost:*"} <= set(hosts)
    assert server["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == "https://mlflow.example.com,http://mlflow.example.com"
    assert "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS" not in variables(container(rendered(MLFLOW), "mlflow"))


def test_what_a_cluster_asks_of_its_pod_reaches_it():
    wanted = {
        "tolerations": [{"key": "of", "operator": "Exists"}],
        "nodeSelector": {"of": "platform"},
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "high",
        "serviceAccountName": "buckets",
    }
    values = {
        **MLFLOW,
        **{f"mlflow.{key}": value for key, value in wanted.items()},
        "mlflow.fsGroup": None,
        "mlflow.podLabels": {"of": "label"},
        "mlflow.podAnnotations": {"of": "annotation"},
        "mlflow.resources": {"limits": {"memory": "3Gi"}},
        "image.pullSecrets": [{"name": "registry"}],
        "workloadImage": {"repository": "example.invalid/workloads", "tag": "7", "pullPolicy": "Never"},
    }
    documents = rendered(values)
    template = deployment(documents, "mlflow")["spec"]["template"]
    assert {key: template["spec"][key] for key in wanted} == wanted
    assert template["spec"]["automountServiceAccountToken"] is False
    assert "fsGroup" not in template["spec"]["securityContext"]
    assert template["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert template["metadata"]["labels"]["of"] == "label"
    assert template["metadata"]["annotations"]["of"] == "annotation"
    server = container(documents, "mlflow")
    assert (server["image"], server["imagePullPolicy"]) == ("example.invalid/workloads:7", "Never")
    assert server["resources"]["limits"] == {"memory": "3Gi"}


def test_another_configuration_starts_it_again():
    def mark(values):
        return deployment(rendered({**MLFLOW, **values}), "mlflow")["spec"]["template"]["metadata"]["annotations"]

    assert mark({}) == mark({}) != mark({"mlflow.auth.defaultPermission": "READ"})


def test_an_mlflow_elsewhere_leaves_nothing_of_ours():
    documents = rendered()
    assert of_kind(documents, "Secret", "PersistentVolumeClaim", "ConfigMap") == []
    assert {document["metadata"]["labels"]["app.kubernetes.io/component"] for document in documents} == {"operator"}
    assert "MLFLOW_TRACKING_PASSWORD" not in variables(container(documents))


def test_an_upgrade_keeps_the_password_and_what_is_kept_is_taken_up_again(control_plane, namespace):
    values = {**MLFLOW, "namespace": namespace, "rbac.aggregate": False}
    secrets = control_plane.resource("v1", "Secret")

    def words():
        return dict(secrets.get(name=SECRET, namespace=namespace).data)

    with installed(control_plane, namespace, values, release="plinth") as notes:
        first = words()
        assert "MISSING" not in notes
        assert base64.b64decode(first["password"]).decode() not in notes
        upgraded(control_plane, namespace, {**values, "replicas": 2}, release="plinth")
        budgets = control_plane.resource("policy/v1", "PodDisruptionBudget")
        assert budgets.get(name="plinth", namespace=namespace).spec.maxUnavailable == 1
        assert words() == first
    claims = control_plane.resource("v1", "PersistentVolumeClaim")
    assert claims.get(name="plinth-mlflow", namespace=namespace).metadata.deletionTimestamp is None
    with installed(control_plane, namespace, values, release="plinth"):
        assert words() == first
    deployments = control_plane.resource("apps/v1", "Deployment")
    wait_until(lambda: deployments.get(namespace=namespace).items == [], 60, "the end of the Deployments")


def test_its_notes_say_what_is_missing_and_where_the_password_is():
    values = {**MLFLOW, "settings.queueName": "team-a"}
    answer = helm("install", "plinth", str(CHART), "-n", "ops", "--dry-run=client", *chart_arguments(values))
    notes = answer.stdout.partition("NOTES:")[2]
    install = "helm install kuberay-operator kuberay/kuberay-operator --version 1.6.2 -n kuberay-system"
    assert "MISSING: KubeRay" in notes
    assert install in notes
    assert "MISSING: Kueue" in notes
    assert f"in the Secret {SECRET}, keys username and password" in notes
    assert "exec deploy/plinth-mlflow -- \\\n       python /etc/mlflow/add_namespace.py team-a | kubectl" in notes
    assert "kubectl apply -f -" not in notes


def test_an_installation_without_kuberay_can_be_refused():
    sentence = refusal({"prerequisites.require": True})
    assert "KubeRay is not installed in this cluster" in sentence
    assert "helm repo add kuberay https://ray-project.github.io/kuberay-helm/" in sentence
    present = ("--api-versions", "ray.io/v1/RayJob")
    arguments = chart_arguments({"prerequisites.require": True})
    assert helm("template", "plinth", str(CHART), *present, *arguments).returncode == 0
