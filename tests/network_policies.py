"""Whom a NetworkPolicy lets in, by the rules of Kubernetes: for a pod network that does not enforce them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """A pod that would like to connect."""

    namespace: str
    labels: Mapping[str, str]


def lets_in(policy: Document, peer: Peer, port: int) -> bool:
    """Whether a policy's pods take a connection from a pod on a port; `policy` has the policy type Ingress."""
    assert "Ingress" in policy["spec"]["policyTypes"]
    here = policy["metadata"]["namespace"]
    return any(_allows(rule, here, peer, port) for rule in policy["spec"].get("ingress", ()))


def selects(selector: Document, labels: Mapping[str, str]) -> bool:
    """Whether a label selector fits; an empty one fits everything."""
    fixed = selector.get("matchLabels", {}).items() <= dict(labels).items()
    return fixed and all(_fits(expression, labels) for expression in selector.get("matchExpressions", ()))


def _allows(rule: Document, here: str, peer: Peer, port: int) -> bool:
    peers = rule.get("from")
    ports = {entry["port"] for entry in rule.get("ports", ())}
    return (not ports or port in ports) and (not peers or any(_is_one(one, here, peer) for one in peers))


def _is_one(one: Document, here: str, peer: Peer) -> bool:
    assert "ipBlock" not in one, "addresses are not looked at"
    namespaces = one.get("namespaceSelector")
    names = {"kubernetes.io/metadata.name": peer.namespace}
    near = peer.namespace == here if namespaces is None else selects(namespaces, names)
    return near and selects(one.get("podSelector", {}), peer.labels)


def _fits(expression: Document, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
    raise ValueError(f"no operator of a selector: {expression['operator']}")
