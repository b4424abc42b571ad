"""What holds for every child of every kind; and that no field of the API that pods are made from is forgotten."""

import copy
from typing import Any

import pytest

from makers import DOCUMENT_MAKERS
from plinth_api.parse import parse_resource
from plinth_api.support import CLUSTER_ONLY
from plinth_operator.plan.children import manifest_hash
from rendering import SETTINGS, UID, children_of, make

KINDS = ("PretrainJob", "FineTuneJob", "ModelService")

SAMPLES: dict[str, Any] = {
    "spec.compute.accelerator": {"product": "NVIDIA-L4"},
    "spec.compute.queueName": "queue",
    "spec.compute.image": "other:1",
    "spec.compute.imagePullSecrets": [{"name": "registry"}],
    "spec.compute.serviceAccountName": "mine",
    "spec.compute.priorityClassName": "high",
    "spec.compute.nodeSelector": {"a": "b"},
    "spec.compute.tolerations": [{"key": "gpu"}],
    "spec.compute.env": [{"name": "A", "value": "1"}],
    "spec.compute.volumes": [{"claimName": "more", "mountPath": "/more"}],
    "spec.compute.podTemplate": {"spec": {"hostIPC": True}},
    "spec.compute.perReplica.memory": "7Gi",
    "spec.model.secretRef": {"name": "hub"},
    "spec.data.train[].secretRef": {"name": "bucket"},
    "spec.data.validation.sources[].secretRef": {"name": "bucket"},
    "spec.checkpoint.secretRef": {"name": "checkpoints"},
    "spec.tracking.secretRef": {"name": "mlflow"},
    "spec.task.distillation.teacher.secretRef": {"name": "teachers"},
    "spec.rollout.clusterChange": "Recreate",
    "spec.access.apiKeySecretRef": {"name": "keys"},
    "spec.access.ingress": {"host": "a.example.com"},
}

ELSEWHERE = {
    "spec.restart": "attempts",
    "spec.activeDeadlineSeconds": "attempts: KubeRay's counts each attempt",
    "spec.ttlSecondsAfterFinished": "attempts",
    "spec.suspend": "attempts",
    "spec.rollout.canary": "rollout",
}
"""Cluster-only fields that no manifest shows, and what acts on them."""

GIVEN: dict[str, dict[str, Any]] = {
    "spec.task.distillation.teacher.secretRef": {
        "task": {"instruction": None, "distillation": {"teacher": {"uri": "hf://org/large"}}}
    },
    "spec.data.validation.sources[].secretRef": {
        "data": {"validation": {"fraction": None, "sources": [{"uri": "file:///v"}]}}
    },
}
"""What must be there beside a field."""


def rendered_fields() -> list[tuple[str, str]]:
    return [(kind, path) for kind in KINDS for path in CLUSTER_ONLY[kind] if path not in ELSEWHERE]


def with_field(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    place: Any = changed
    *folders, last = path.split(".")
    for folder in folders:
        name = folder.removesuffix("[]")
        place = place[name][0] if folder.endswith("[]") else place.setdefault(name, {})
    place[last] = value
    return changed


def without_hashes(children: dict[str, Any]) -> dict[str, Any]:
    bare = copy.deepcopy(children)
    for child in bare.values():
        del child["metadata"]["annotations"]
    return bare


@pytest.mark.parametrize(("kind", "path"), rendered_fields())
def test_every_field_for_the_cluster_is_rendered(kind: str, path: str):
    document = DOCUMENT_MAKERS[kind](namespace="team-a", uid=UID, **GIVEN.get(path, {}))
    before = children_of(parse_resource(document))
    after = children_of(parse_resource(with_field(document, path, SAMPLES[path])))
    assert without_hashes(before) != without_hashes(after)
    changed = [one for one in after if before.get(one, {}).get("metadata") != after[one]["metadata"]]
    assert changed, "the hash must change with the manifest"


@pytest.mark.parametrize("kind", KINDS)
def test_rendering_twice_gives_the_same(kind: str):
    assert children_of(make(kind)) == children_of(make(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_child_belongs_to_its_resource(kind: str):
    ingress = {"access": {"ingress": {"host": "a.example.com"}}} if kind == "ModelService" else {}
    resource = make(kind, **ingress)
    for child in children_of(resource).values():
        metadata = child["metadata"]
        assert metadata["namespace"] == "team-a"
        assert metadata["name"].startswith(f"{resource.metadata.name}-abcde")
        assert (
            metadata["labels"].items()
            >= {
                "app.kubernetes.io/managed-by": "plinth",
                "plinth.dev/uid": UID,
                "plinth.dev/name": resource.metadata.name,
                "plinth.dev/kind": kind,
            }.items()
        )
        (owner,) = metadata["ownerReferences"]
        assert owner == {
            "apiVersion": "plinth.dev/v1alpha1",
            "kind": kind,
            "name": resource.metadata.name,
            "uid": UID,
            "controller": True,
            "blockOwnerDeletion": True,
        }
        assert metadata["annotations"]["plinth.dev/hash"] == manifest_hash(child)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_pod_needs_comes_before_the_pods(kind: str):
    order = list(children_of(make(kind)))
    assert order == (
        ["NetworkPolicy", "RayService"] if kind == "ModelService" else ["ConfigMap", "NetworkPolicy", "RayJob"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_network_policies_can_be_left_out(kind: str):
    assert "NetworkPolicy" not in children_of(make(kind), SETTINGS.model_copy(update={"network_policies": False}))


def test_the_hash_depends_on_the_content_alone():
    child = children_of(make("PretrainJob"))["RayJob"]
    turned = dict(reversed(child.items()))
    assert manifest_hash(turned) == manifest_hash(child)
    assert manifest_hash({**child, "spec": {}}) != manifest_hash(child)
    assert manifest_hash({"metadata": {"name": "a"}}) == manifest_hash({"metadata": {"name": "a", "annotations": {}}})
