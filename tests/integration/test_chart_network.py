"""Who reaches the operator and MLflow, and whom they reach, as the chart's NetworkPolicies say; and what is watched."""

import re

import pytest

from charts import MLFLOW, container, deployment, of_kind, refusal, rendered
from plinth_operator.constants import UID_LABEL
from plinth_operator.plan.access import PROBE_PORT, SERVE_PORT
from plinth_workloads.serving.probes import METRICS_PATH
from rendering import SETTINGS, children_of, make

pytestmark = pytest.mark.integration

RAY_PODS = {"matchExpressions": [{"key": UID_LABEL, "operator": "Exists"}]}
DNS_PORTS = {53, 5353}
MONITORING = {"metrics.namespaces": ["monitoring"]}


def policy(documents, component):
    (found,) = of_kind(documents, "NetworkPolicy", component=component)
    pods = deployment(documents, component)["spec"]["template"]["metadata"]["labels"]
    assert found["spec"]["podSelector"]["matchLabels"].items() <= pods.items()
    assert found["spec"]["policyTypes"] == ["Ingress", "Egress"]
    return found["spec"]


def ports(rule):
    return {port["port"] for port in rule["ports"]}


def pods_of(documents, component):
    return {"podSelector": deployment(documents, component)["spec"]["selector"]}


def namespaces(names):
    expression = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": names}
    return {"namespaceSelector": {"matchExpressions": [expression]}}


def test_nobody_reaches_the_operator_but_who_reads_its_metrics():
    assert policy(rendered(MLFLOW), "operator")["ingress"] == []
    documents = rendered({**MLFLOW, **MONITORING})
    probes = container(documents)["ports"][0]["containerPort"]
    (rule,) = policy(documents, "operator")["ingress"]
    assert rule == {"from": [namespaces(["monitoring"])], "ports": [{"protocol": "TCP", "port": probes}]}


def test_the_operator_reaches_dns_the_api_server_services_and_mlflow():
    documents = rendered(MLFLOW)
    dns, server, services, mlflow = policy(documents, "operator")["egress"]
    assert (ports(dns), ports(server)) == (DNS_PORTS, {443, 6443})
    assert services["to"] == [{"namespaceSelector": {}, "podSelector": RAY_PODS}]
    assert ports(services) == {SERVE_PORT, PROBE_PORT}
    assert mlflow["to"] == [pods_of(documents, "mlflow")]
    assert ports(mlflow) == {container(documents, "mlflow")["ports"][0]["containerPort"]}


@pytest.mark.parametrize(
    ("uri", "port"),
    [("http://mlflow.example", 80), ("https://mlflow.example/x", 443), ("http://mlflow.example:5001", 5001)],
)
def test_the_operator_reaches_the_port_of_an_mlflow_elsewhere(uri, port):
    assert ports(policy(rendered({"settings.trackingUri": uri}), "operator")["egress"][-1]) == {port}


def test_the_operator_and_ray_pods_reach_mlflow():
    documents = rendered(MLFLOW)
    (rule,) = policy(documents, "mlflow")["ingress"]
    assert rule["from"] == [
        pods_of(documents, "operator"),
        {"namespaceSelector": {}, "podSelector": RAY_PODS},
    ]
    assert ports(rule) == {5000}
    (dns,) = policy(documents, "mlflow")["egress"]
    assert ports(dns) == DNS_PORTS


def test_only_ray_pods_of_the_served_namespace_count():
    documents = rendered({**MLFLOW, "namespace": "team-a"})
    peer = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team-a"}},
        "podSelector": RAY_PODS,
    }
    assert policy(documents, "mlflow")["ingress"][0]["from"][1] == peer
    assert policy(documents, "operator")["egress"][2]["to"] == [peer]


def test_more_can_be_let_in_and_out():
    bucket = {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"protocol": "TCP", "port": 9000}]}
    documents = rendered(
        {
            **MLFLOW,
            "networkPolicy.mlflowIngress": [namespaces(["ingress"])],
            "networkPolicy.mlflowEgress": [bucket],
            "networkPolicy.operatorEgress": [bucket],
            "networkPolicy.apiServerPorts": [8443],
        }
    )
    assert policy(documents, "mlflow")["ingress"][0]["from"][2:] == [namespaces(["ingress"])]
    assert policy(documents, "mlflow")["egress"][1:] == [bucket]
    assert policy(documents, "operator")["egress"][4:] == [bucket]
    assert ports(policy(documents, "operator")["egress"][1]) == {8443}


def test_policies_can_be_left_out():
    assert of_kind(rendered({**MLFLOW, "networkPolicy.enabled": False}), "NetworkPolicy") == []


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, "ops,kuberay-system"),
        (MONITORING, "ops,kuberay-system,monitoring"),
        ({"kuberay.namespace": "ops"}, "ops"),
        ({"settings.controlNamespaces": "platform"}, "platform"),
    ],
)
def test_ray_clusters_let_in_this_operator_kuberay_and_who_reads_metrics(values, names):
    variables = {entry["name"]: entry.get("value") for entry in container(rendered(values))["env"]}
    assert variables["PLINTH_CONTROL_NAMESPACES"] == names


def test_of_two_replicas_one_stays():
    documents = rendered({"replicas": 2})
    (budget,) = of_kind(documents, "PodDisruptionBudget")
    assert budget["spec"]["selector"] == deployment(documents)["spec"]["selector"]
    assert budget["spec"]["maxUnavailable"] == 1
    # It would keep a node with the only replica from ever being drained.
    assert of_kind(rendered(), "PodDisruptionBudget") == []


def test_prometheus_finds_the_metrics():
    labels = {"release": "prometheus"}
    values = {**MONITORING, "metrics.serviceMonitor": {"enabled": True, "interval": "15s", "labels": labels}}
    documents = rendered({**MLFLOW, **values})
    monitor, _ = of_kind(documents, "ServiceMonitor")
    found = [
        service
        for service in of_kind(documents, "Service")
        if monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ]
    (service,) = found
    (endpoint,) = monitor["spec"]["endpoints"]
    (port,) = service["spec"]["ports"]
    assert endpoint == {"port": port["name"], "path": "/metrics", "interval": "15s"}
    assert port["targetPort"] == container(documents)["ports"][0]["name"]
    assert monitor["metadata"]["labels"].items() >= labels.items()
    assert of_kind(rendered(MLFLOW), "ServiceMonitor") == []


@pytest.mark.parametrize(
    ("values", "selector"), [({}, {"any": True}), ({"namespace": "team-a"}, {"matchNames": ["team-a"]})]
)
def test_prometheus_finds_each_replica_of_each_service(values, selector):
    values = {**MONITORING, **values, "metrics.serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}
    _, monitor = of_kind(rendered(values), "ServiceMonitor")
    serve = children_of(make("ModelService"))["RayService"]["spec"]["serveService"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["namespaceSelector"] == selector
    assert monitor["spec"]["selector"]["matchLabels"].items() <= serve["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] == serve["spec"]["ports"][0]["name"]
    assert endpoint["path"] == METRICS_PATH
    kept, moved = endpoint["relabelings"]
    assert (kept["action"], kept["regex"]) == ("keep", "worker")
    # Prometheus anchors it. The Service has no such port: KubeRay keeps none but its own.
    found = re.fullmatch(moved["regex"], "10.0.0.1:8000")
    assert found is not None
    assert moved["replacement"].replace("$1", found[1]) == f"10.0.0.1:{PROBE_PORT}"
    assert (moved["sourceLabels"], moved["targetLabel"]) == (["__address__"], "__address__")


def test_prometheus_finds_the_pods_of_vllm_and_does_not_ask_their_service():
    values = {**MONITORING, "metrics.serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}
    documents = rendered(values)
    asked = make("ModelService", engine="vllm", compute={"perReplica": {"gpus": 1}})
    service = children_of(asked, SETTINGS.model_copy(update={"vllm_image": "vllm:1"}))["RayService"]["spec"]
    (monitor,) = of_kind(documents, "PodMonitor")
    pod = service["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["metadata"]["labels"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pod.items()
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]
    _, of_services = of_kind(documents, "ServiceMonitor")
    (expression,) = of_services["spec"]["selector"]["matchExpressions"]
    assert (expression["operator"], expression["key"] in service["serveService"]["metadata"]["labels"]) == (
        "DoesNotExist",
        True,
    )


def test_the_operator_is_told_of_an_image_with_vllm_where_there_is_one():
    def told(values):
        variables = {one["name"]: one.get("value") for one in container(rendered(values))["env"]}
        return variables.get("PLINTH_VLLM_IMAGE")

    image = {"vllmImage.repository": "example.invalid/vllm"}
    assert told(MLFLOW) is None
    assert told({**MLFLOW, **image, "vllmImage.tag": "7"}) == "example.invalid/vllm:7"
    assert told({**MLFLOW, **image}).startswith("example.invalid/vllm:0.")


def test_a_monitor_that_the_policy_keeps_out_is_refused():
    values = {"metrics.serviceMonitor.enabled": True}
    assert "metrics.namespaces: name the namespace of your Prometheus" in refusal(values)
    assert of_kind(rendered({**values, "networkPolicy.enabled": False}), "ServiceMonitor") != []
