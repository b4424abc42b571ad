"""What stands in the way of the objects that a resource needs: told in its status, waited for, never taken over."""

import json

import pytest

from cluster.control_plane import wait_until
from makers import pretrain_document, service_document
from plinth_api.parse import parse_resource
from plinth_api.resolve import resolve_serve_run
from plinth_operator.plan.children import service_children
from plinth_operator.plan.drift import differs
from plinth_operator.plan.run_config import resolve_settings_for
from plinth_operator.settings import Settings
from plinth_operator.status.facts import facts_from

pytestmark = pytest.mark.integration

SERVED = {"uri": "models:/tiny/1"}
HELD = {"model": {"uri": "pvc://models/tiny"}}
"""A service that waits for a claim, so that its uid is known before its children are made."""


def make(cluster, group, plural, kind, name, **body):
    """An object of somebody else."""
    document = {"apiVersion": group or "v1", "kind": kind, "metadata": {"name": name}, **body}
    return cluster.plane.request("POST", cluster.path(group, plural), json.dumps(document).encode())


def accepted(status):
    (found,) = [one["status"] for one in status["conditions"] if one["type"] == "Accepted"]
    return found


# ---- names that are taken


def test_a_service_of_somebody_else_is_not_taken_over(cluster):
    port = {"name": "http", "port": 80}
    theirs = make(cluster, "", "services", "Service", "tiny-serve", spec={"selector": {"app": "x"}, "ports": [port]})
    document = service_document(model=SERVED)
    cluster.create(document)
    status = cluster.wait_status(document, phase="Pending", reason="NameConflict")
    assert status["message"] == (
        "a Service named tiny-serve exists in this namespace and is not ours; delete or rename it"
    )
    assert cluster.items("ray.io/v1", "rayservices") == []
    path = cluster.path("", "services", "tiny-serve")
    assert cluster.plane.request("GET", path) == theirs
    cluster.plane.request("DELETE", path)
    cluster.wait_status(document, phase="Starting")


@pytest.mark.parametrize(
    ("group", "plural", "kind", "spec"),
    [
        pytest.param(
            "networking.k8s.io/v1",
            "networkpolicies",
            "NetworkPolicy",
            {"podSelector": {"matchLabels": {"app": "x"}}, "policyTypes": ["Ingress"]},
            id="a NetworkPolicy",
        ),
        pytest.param(
            "networking.k8s.io/v1",
            "ingresses",
            "Ingress",
            {"defaultBackend": {"service": {"name": "x", "port": {"number": 80}}}},
            id="an Ingress",
        ),
        pytest.param(
            "ray.io/v1",
            "rayservices",
            "RayService",
            {"rayClusterConfig": {"headGroupSpec": {"template": {"spec": {"containers": [{"name": "x"}]}}}}},
            id="a RayService",
        ),
    ],
)
def test_an_object_with_the_name_of_a_child_is_left_alone_until_it_goes(cluster, group, plural, kind, spec):
    document = service_document(**HELD, access={"ingress": {"host": "a.example.com"}})
    uid = cluster.create(document)["metadata"]["uid"]
    cluster.wait_status(document, phase="Pending", reason="VolumeNotFound")
    name = f"tiny-{uid[:5]}"
    make(cluster, group, plural, kind, name, spec=spec)
    cluster.claim("models")
    status = cluster.wait_status(document, reason="NameConflict")
    assert f"a {kind} named {name} exists in this namespace and is not ours" in status["message"]
    path = cluster.path(group, plural, name)
    found = cluster.plane.request("GET", path)
    assert "plinth" not in {entry["manager"] for entry in found["metadata"]["managedFields"]}
    assert "ownerReferences" not in found["metadata"]
    cluster.plane.request("DELETE", path)
    cluster.wait_status(document, phase="Starting")
    (ours,) = [item for item in cluster.items(group, plural) if item["metadata"]["name"] == name]
    assert [owner["uid"] for owner in ours["metadata"]["ownerReferences"]] == [uid]


def test_a_config_map_with_the_name_of_a_run_document_is_never_read_as_one(cluster):
    document = pretrain_document()
    uid = cluster.create(document)["metadata"]["uid"]
    cluster.wait_status(document, phase="Pending", reason="VolumeNotFound")
    make(cluster, "", "configmaps", "ConfigMap", f"tiny-{uid[:5]}-1", data={"run.json": "{}"})
    cluster.claim("plinth")
    status = cluster.wait_status(document, phase="Pending", reason="NameConflict")
    assert f"a ConfigMap named tiny-{uid[:5]}-1" in status["message"]
    assert cluster.ray_jobs() == []


# ---- what the API server or KubeRay's schema refuses


@pytest.mark.parametrize("kind", ["PretrainJob", "ModelService"])
def test_a_pod_template_that_is_none_is_told_with_its_path_and_can_be_mended(cluster, kind):
    cluster.claim("plinth")
    container = {"name": "ray", "ports": [{"containerPort": "http"}]}
    template = {"spec": {"terminationGracePeriodSeconds": "soon", "containers": [container], "nodeSelctor": {"a": "b"}}}
    compute = {"podTemplate": template}
    document = pretrain_document(compute=compute) if kind == "PretrainJob" else service_document(model=SERVED)
    document["spec"]["compute"] = compute
    cluster.create(document)
    status = cluster.wait_status(document, phase="Failed", reason="InvalidSpec")
    assert "spec.compute.podTemplate.spec.nodeSelctor: is no field of a pod template" in status["message"]
    assert accepted(status) == "False"
    del template["spec"]["nodeSelctor"]
    cluster.merge(document, {"spec": {"compute": {"podTemplate": {"spec": {"nodeSelctor": None}}}}})

    def told_types():
        message = cluster.get(document)["status"]["message"]
        return "spec.compute.podTemplate.spec.terminationGracePeriodSeconds: " in message and message

    message = wait_until(told_types, 60, "the next refusal")
    assert 'spec.compute.podTemplate.spec.containers[name="ray"].ports[containerPort="http"' in message
    cluster.merge(document, {"spec": {"compute": {"podTemplate": {"spec": None}}}})
    status = cluster.wait_status(document, phase="Starting")
    assert accepted(status) == "True"


def test_a_pod_template_that_only_pods_refuse_is_told_by_kuberay(cluster):
    cluster.claim("plinth")
    document = pretrain_document(compute={"podTemplate": {"spec": {"restartPolicy": "Sometimes"}}})
    cluster.create(document)
    status = cluster.wait_status(document, phase="Starting", reason="PodCreationFailed")
    assert 'spec.restartPolicy: Unsupported value: "Sometimes"' in status["message"]


def test_a_quota_of_objects_is_told_and_waited_for(cluster):
    cluster.claim("plinth")
    make(cluster, "", "resourcequotas", "ResourceQuota", "few", spec={"hard": {"count/rayjobs.ray.io": "0"}})
    quota = cluster.path("", "resourcequotas", "few")
    wait_until(lambda: "hard" in cluster.plane.request("GET", quota).get("status", {}), 60, "the quota to count")
    document = pretrain_document()
    cluster.create(document)
    status = cluster.wait_status(document, phase="Pending", reason="QuotaExceeded")
    assert "exceeded quota: few" in status["message"]
    assert accepted(status) == "True"
    cluster.plane.request("DELETE", quota)
    cluster.wait_status(document, phase="Starting")


def test_a_refusal_that_stays_is_written_once(cluster, disturbed):
    document = service_document(model=SERVED, compute={"podTemplate": {"spec": {"a": 1, "b": 2, "c": 3}}})
    cluster.create(document)
    cluster.wait_status(document, phase="Failed", reason="InvalidSpec")

    def tries():
        return [one for one in disturbed.api.writes(cluster.name) if "/rayservices/" in one.path]

    wait_until(lambda: len(tries()) >= 5, 60, "five tries")
    writes = [one for one in disturbed.api.writes(cluster.name) if "/modelservices/tiny/status" in one.path]
    assert len(writes) == 1


# ---- what KubeRay writes in other words


def test_quantities_and_empty_lists_of_a_pod_template_are_not_taken_for_a_hand_edit(cluster, disturbed):
    resources = {"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": {"memory": "1024Mi"}}
    container = {"name": "side", "image": "x", "resources": resources, "args": [], "envFrom": []}
    ray = {"name": "ray", "resources": {"requests": {"cpu": 1, "memory": "0.5Gi"}}, "securityContext": {}}
    scratch = {"name": "scratch", "emptyDir": {"sizeLimit": "2048Mi"}}
    spec = {"containers": [ray, container], "tolerations": [], "volumes": [scratch], "hostNetwork": False}
    document = service_document(
        model=SERVED, compute={"podTemplate": {"metadata": {"annotations": {}}, "spec": {**spec, "affinity": {}}}}
    )
    cluster.create(document)

    def written_by_kuberay():
        found = cluster.items("ray.io/v1", "rayservices")
        return found and "finalizers" in found[0]["metadata"] and found[0].get("status") and found[0]

    found = wait_until(written_by_kuberay, 60, "KubeRay to write the RayService")
    assert '"1000m"' not in json.dumps(found["spec"]), "KubeRay must have written it anew, or this tests nothing"
    resource = parse_resource({**cluster.get(document), "status": None})
    settings = Settings(tracking_uri=disturbed.mlflow.url)
    run = resolve_serve_run(resource, resolve_settings_for(resource, settings), {})
    (wanted,) = [one for one in service_children(resource, run, settings=settings) if one["kind"] == "RayService"]
    assert "1000m" in json.dumps(wanted)
    assert not differs(facts_from({**found, "kind": "RayService"}), wanted)
    cluster.wait_status(document, phase="Starting", reason="Unschedulable")
    assert len([one for one in disturbed.api.writes(cluster.name) if "/rayservices/" in one.path]) == 1
