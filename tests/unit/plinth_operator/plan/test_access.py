from typing import Any

import pytest

from rendering import SETTINGS, UID, children_of, make

SAME_POD = {"podSelector": {"matchLabels": {"plinth.dev/uid": UID}}}


def rules_of(kind: str, settings: Any = SETTINGS) -> list[dict[str, Any]]:
    policy = children_of(make(kind), settings)["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == SAME_POD["podSelector"]
    assert policy["policyTypes"] == ["Ingress"]
    rules: list[dict[str, Any]] = policy["ingress"]
    return rules


@pytest.mark.parametrize("kind", ["PretrainJob", "ModelService"])
def test_only_pods_of_the_same_resource_reach_every_port(kind: str):
    open_to_all_ports = [rule for rule in rules_of(kind) if "ports" not in rule]
    assert open_to_all_ports == [{"from": [SAME_POD]}]


def test_a_service_answers_everybody_and_a_job_nobody():
    ports = {
        kind: [rule["ports"] for rule in rules_of(kind) if "from" not in rule]
        for kind in ("PretrainJob", "ModelService")
    }
    assert ports == {"PretrainJob": [], "ModelService": [[{"protocol": "TCP", "port": 8000}]]}


@pytest.mark.parametrize(
    ("namespaces", "peer"),
    [
        ("", {"namespaceSelector": {}}),
        (
            "plinth, kuberay-system,",
            {
                "namespaceSelector": {
                    "matchExpressions": [
                        {
                            "key": "kubernetes.io/metadata.name",
                            "operator": "In",
                            "values": ["plinth", "kuberay-system"],
                        }
                    ]
                }
            },
        ),
    ],
)
def test_the_dashboard_is_for_the_namespaces_that_control(namespaces: str, peer: dict[str, Any]):
    rules = rules_of("PretrainJob", SETTINGS.model_copy(update={"control_namespaces": namespaces}))
    (rule,) = [rule for rule in rules if rule.get("ports") and rule.get("from")]
    assert rule["from"] == [peer]
    assert [port["port"] for port in rule["ports"]] == [8265, 8080]


def test_the_replicas_own_port_is_for_the_namespaces_that_watch():
    (rule,) = [rule for rule in rules_of("ModelService") if rule.get("ports") and rule.get("from")]
    assert [port["port"] for port in rule["ports"]] == [8265, 8080, 8001]


def test_a_service_has_an_ingress_where_it_asks_for_one():
    assert "Ingress" not in children_of(make("ModelService"))
    ingress = {"host": "a.example.com", "className": "nginx", "tlsSecretRef": {"name": "cert"}}
    spec = children_of(make("ModelService", access={"ingress": ingress}))["Ingress"]["spec"]
    assert spec["ingressClassName"] == "nginx"
    assert spec["tls"] == [{"hosts": ["a.example.com"], "secretName": "cert"}]
    (rule,) = spec["rules"]
    assert rule["host"] == "a.example.com"
    assert rule["http"]["paths"][0]["backend"] == {"service": {"name": "tiny-serve", "port": {"number": 8000}}}


def test_a_plain_ingress_names_neither_class_nor_certificate():
    spec = children_of(make("ModelService", access={"ingress": {"host": "a.example.com"}}))["Ingress"]["spec"]
    assert set(spec) == {"rules"}
