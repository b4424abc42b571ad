"""No field of a ModelService is passed over where vLLM serves: each changes what is rendered, or is refused.

What becomes of the fields of the serving document that is rendered here, test_vllm_config.py says.
"""

from typing import Any

import pytest

from makers import merged
from plinth_api.errors import InvalidSpec
from plinth_api.fields import fields_of
from rendering import SETTINGS, children_of, make

WITH_VLLM = SETTINGS.model_copy(update={"vllm_image": "vllm:1"})
BASE: dict[str, Any] = {
    "engine": "vllm",
    "task": "generate",
    "model": {"uri": "models:/tiny/1"},
    "adapters": [{"name": "docs", "uri": "models:/docs/1"}],
    "prompt": {"system": "Be brief.", "examples": [{"user": "Hello", "assistant": "Hi"}]},
    "compute": {"perReplica": {"gpus": 1}, "env": [{"name": "A", "value": "1"}], "tolerations": [{"key": "a"}]},
    "scaling": {"minReplicas": 2, "maxReplicas": 4},
    "access": {"ingress": {"host": "a.example.com", "tlsSecretRef": {"name": "tls"}}},
}


def compute(**changes: Any) -> dict[str, Any]:
    return {"compute": changes}


def toleration(**changes: Any) -> dict[str, Any]:
    return compute(tolerations=[{"key": "a", **changes}])


def volume(**changes: Any) -> dict[str, Any]:
    return compute(volumes=[{"claimName": "more", "mountPath": "/more", **changes}])


def env(**changes: Any) -> dict[str, Any]:
    return compute(env=[{"name": "A", **changes}])


RENDERED: dict[str, dict[str, Any]] = {
    "spec.model.uri": {"model": {"uri": "models:/tiny/2"}},
    "spec.model.secretRef.name": {"model": {"secretRef": {"name": "hub"}}},
    "spec.adapters[].name": {"adapters": [{"name": "other", "uri": "models:/docs/1"}]},
    "spec.adapters[].uri": {"adapters": [{"name": "docs", "uri": "models:/docs/2"}]},
    "spec.engine": {"engine": "torch"},
    "spec.task": {"task": "auto"},
    "spec.compile": {"compile": False},
    "spec.prompt.system": {"prompt": {"system": "Be long."}},
    "spec.prompt.examples[].user": {"prompt": {"examples": [{"user": "Hey", "assistant": "Hi"}]}},
    "spec.prompt.examples[].assistant": {"prompt": {"examples": [{"user": "Hello", "assistant": "Ho"}]}},
    "spec.compute.accelerator.product": compute(accelerator={"product": "NVIDIA-L4"}),
    "spec.compute.accelerator.resource": compute(accelerator={"resource": "nvidia.com/mig-1g.5gb"}),
    "spec.compute.image": compute(image="mine:1"),
    "spec.compute.imagePullSecrets[].name": compute(imagePullSecrets=[{"name": "registry"}]),
    "spec.compute.serviceAccountName": compute(serviceAccountName="mine"),
    "spec.compute.priorityClassName": compute(priorityClassName="high"),
    "spec.compute.nodeSelector": compute(nodeSelector={"a": "b"}),
    "spec.compute.tolerations[].key": toleration(key="b"),
    "spec.compute.tolerations[].operator": toleration(operator="Exists"),
    "spec.compute.tolerations[].value": toleration(value="b"),
    "spec.compute.tolerations[].effect": toleration(effect="NoSchedule"),
    "spec.compute.tolerations[].tolerationSeconds": toleration(tolerationSeconds=5),
    "spec.compute.env[].name": compute(env=[{"name": "B", "value": "1"}]),
    "spec.compute.env[].value": env(value="2"),
    "spec.compute.env[].secretKeyRef.name": env(secretKeyRef={"name": "a", "key": "k"}),
    "spec.compute.env[].secretKeyRef.key": env(secretKeyRef={"name": "a", "key": "l"}),
    "spec.compute.volumes[].claimName": volume(claimName="other"),
    "spec.compute.volumes[].mountPath": volume(mountPath="/other"),
    "spec.compute.volumes[].readOnly": volume(readOnly=True),
    "spec.compute.podTemplate": compute(podTemplate={"spec": {"hostIPC": True}}),
    "spec.compute.perReplica.gpus": compute(perReplica={"gpus": 2}, tensorParallel=2),
    "spec.compute.perReplica.cpus": compute(perReplica={"cpus": 3}),
    "spec.compute.perReplica.memory": compute(perReplica={"memory": "7Gi"}),
    "spec.compute.tensorParallel": compute(perReplica={"gpus": 4}, tensorParallel=4),
    "spec.scaling.minReplicas": {"scaling": {"minReplicas": 1}},
    "spec.scaling.maxReplicas": {"scaling": {"maxReplicas": 5}},
    "spec.scaling.targetOngoingRequests": {"scaling": {"targetOngoingRequests": 7}},
    "spec.rollout.clusterChange": {"rollout": {"clusterChange": "Recreate"}},
    "spec.access.apiKeySecretRef.name": {"access": {"apiKeySecretRef": {"name": "keys"}}},
    "spec.access.ingress.host": {"access": {"ingress": {"host": "b.example.com"}}},
    "spec.access.ingress.className": {"access": {"ingress": {"className": "nginx"}}},
    "spec.access.ingress.tlsSecretRef.name": {"access": {"ingress": {"tlsSecretRef": {"name": "other"}}}},
    "spec.limits.maxBodyBytes": {"limits": {"maxBodyBytes": "1Mi"}},
    "spec.limits.maxPromptTokens": {"limits": {"maxPromptTokens": 7}},
    "spec.limits.maxOutputTokens": {"limits": {"maxOutputTokens": 7}},
    "spec.limits.requestTimeoutSeconds": {"limits": {"requestTimeoutSeconds": 7}},
}

REFUSED: dict[str, dict[str, Any]] = {
    "spec.compute.queueName": compute(queueName="queue"),
    "spec.rollout.canary.steps": {"rollout": {"canary": {"steps": [5]}}},
    "spec.rollout.canary.intervalSeconds": {"rollout": {"canary": {"intervalSeconds": 5}}},
    "spec.rollout.canary.maxErrorRate": {"rollout": {"canary": {"maxErrorRate": 0.5}}},
    "spec.rollout.canary.maxLatencyIncrease": {"rollout": {"canary": {"maxLatencyIncrease": 0.5}}},
}

READ_BESIDE_WHAT_IS_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "spec.scaling.idleSeconds": ({"scaling": {"minReplicas": 0, "idleSeconds": 60}}, "spec.scaling.minReplicas"),
}


def rendered(changes: dict[str, Any]) -> dict[str, Any]:
    return children_of(make("ModelService", **merged(BASE, changes)), WITH_VLLM)


def test_of_every_field_somebody_has_decided_what_vllm_does_with_it():
    leaves = {
        field.path for field in fields_of("ModelService") if field.nested is None or not field.nested.model_fields
    }
    assert leaves == {*RENDERED, *REFUSED, *READ_BESIDE_WHAT_IS_REFUSED}


@pytest.mark.parametrize("path", RENDERED)
def test_a_field_changes_what_is_rendered(path: str):
    changes = RENDERED[path]
    before = children_of(make("ModelService", **BASE), WITH_VLLM)
    assert rendered(changes) != before


@pytest.mark.parametrize("path", REFUSED)
def test_a_field_that_vllm_has_nothing_for_is_refused(path: str):
    with pytest.raises(InvalidSpec) as refusal:
        rendered(REFUSED[path])
    assert any(path.startswith(problem.path) for problem in refusal.value.problems)


@pytest.mark.parametrize("path", READ_BESIDE_WHAT_IS_REFUSED)
def test_a_field_that_only_says_more_of_what_is_refused_is_refused_with_it(path: str):
    changes, refused = READ_BESIDE_WHAT_IS_REFUSED[path]
    with pytest.raises(InvalidSpec) as refusal:
        rendered(changes)
    assert [problem.path for problem in refusal.value.problems] == [refused]


def test_replicas_of_vllm_have_no_port_of_their_own_and_none_is_open():
    children = rendered({})
    assert "probePort" not in children["RayService"]["spec"]["serveConfigV2"]
    ports = [port["port"] for rule in children["NetworkPolicy"]["spec"]["ingress"] for port in rule.get("ports", ())]
    assert ports == [8265, 8080, 8000]
