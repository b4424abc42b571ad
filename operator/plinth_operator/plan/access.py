"""Who reaches the pods of a resource: a NetworkPolicy for each, and an Ingress where a service asks for one.

Whoever reaches Ray's own ports runs code. They are open to pods of the same resource only; the dashboard, which also
asks for a token, and metrics are open to the namespaces that control and watch.
"""

from typing import Any

from plinth_api.model_service import ModelService
from plinth_api.parse import Resource
from plinth_operator.constants import UID_LABEL
from plinth_operator.facts import Manifest
from plinth_operator.plan.metadata import child_metadata, child_name, sealed, uid_of
from plinth_operator.plan.serving_engine import is_served_by_vllm
from plinth_operator.settings import Settings

SERVE_PORT = 8000
PROBE_PORT = 8001
"""Of each replica: what asks there is no request, so it neither wakes a service that is at zero nor keeps it up."""
_DASHBOARD_PORT = 8265
_METRICS_PORT = 8080


def serve_service_name(name: str) -> str:
    """The Service of the ModelService `name`, which KubeRay points at the cluster in use.

    Not the bare name: KubeRay takes over a Service that is there already, and one of that name may be a user's.
    """
    return f"{name}-serve"


def build_network_policy(resource: Resource, *, settings: Settings) -> Manifest:
    """What may reach the pods of a resource; what they reach is left to the cluster's own policies."""
    same = {UID_LABEL: uid_of(resource)}
    is_service = isinstance(resource, ModelService)
    has_probes = is_service and not is_served_by_vllm(resource, settings)
    watched = [_DASHBOARD_PORT, _METRICS_PORT, *([PROBE_PORT] if has_probes else [])]
    serving = [{"ports": [_port(SERVE_PORT)]}] if is_service else []
    return sealed(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": child_metadata(resource, child_name(resource)),
            "spec": {
                "podSelector": {"matchLabels": same},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {"from": [{"podSelector": {"matchLabels": same}}]},
                    {"from": _control(settings), "ports": [_port(number) for number in watched]},
                    *serving,
                ],
            },
        }
    )


def build_ingress(service: ModelService) -> Manifest | None:
    """The Ingress of a service, None where it asks for none."""
    wanted = service.spec.access.ingress
    if wanted is None:
        return None
    backend = {"service": {"name": serve_service_name(service.metadata.name), "port": {"number": SERVE_PORT}}}
    secret = wanted.tls_secret_ref
    return sealed(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": child_metadata(service, child_name(service)),
            "spec": {
                **({"ingressClassName": wanted.class_name} if wanted.class_name else {}),
                "rules": [
                    {
                        "host": wanted.host,
                        "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
                    }
                ],
                **({"tls": [{"hosts": [wanted.host], "secretName": secret.name}]} if secret else {}),
            },
        }
    )


def _control(settings: Settings) -> list[dict[str, Any]]:
    """Peers of the dashboard and of metrics: the namespaces of the setting, all of them where it is empty."""
    names = [name.strip() for name in settings.control_namespaces.split(",") if name.strip()]
    if not names:
        return [{"namespaceSelector": {}}]
    expression = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": names}
    return [{"namespaceSelector": {"matchExpressions": [expression]}}]


def _port(number: int) -> dict[str, Any]:
    return {"protocol": "TCP", "port": number}
