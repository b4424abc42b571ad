"""The control plane that tests run on is a real one: KubeRay, scheduler, garbage collector and validation all act."""

import http.client
import os
import re
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from cluster.control_plane import ControlPlane, wait_until
from cluster.faulty_proxy import FaultyProxy, Rule
from cluster.kubeconfig import write_kubeconfig
from cluster.manifests import documents

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60

RAY_CONTAINER = {"name": "ray", "image": "example.invalid/ray", "resources": {"requests": {"cpu": "100m"}}}


def ray_job(name):
    template = {"metadata": {"labels": {"of": "the-template"}}, "spec": {"containers": [RAY_CONTAINER]}}
    cluster = {"rayVersion": "2.60.0", "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": template}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "labels": {"of": "the-job"}},
        "spec": {"entrypoint": "python -c pass", "rayClusterSpec": cluster},
    }


def config_map(name, owner=None):
    metadata = {"name": name, **({"ownerReferences": [owner]} if owner else {})}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def only(plane, api_version, kind, namespace):
    """The one object of a kind, once it is there."""

    def find():
        return plane.resource(api_version, kind).get(namespace=namespace).items

    return wait_until(find, SECONDS, f"a {kind} in {namespace}")[0]


def test_it_starts_and_everything_ends_with_it(tmp_path):
    started = time.monotonic()
    with ControlPlane(tmp_path, crds=("plinth",), scheduler=False) as plane:
        seconds = time.monotonic() - started
        sys.stdout.write(f"ready after {seconds:.1f} s\n")
        assert seconds < SECONDS
        pids = [plane._processes.pid(name) for name in ("etcd", "kube-apiserver", "kube-controller-manager")]
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_it_does_not_outlive_the_process_that_started_it(tmp_path):
    program = "import sys, time; from pathlib import Path; from cluster.control_plane import ControlPlane\n"
    program += "plane = ControlPlane(Path(sys.argv[1]), crds=(), scheduler=False).start()\n"
    program += (
        "print(plane._processes.pid('etcd'), plane._processes.pid('kube-apiserver'), flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        pids = process.stdout.readline().split()
        process.kill()
    assert len(pids) == 2

    def all_ended():
        # Where nobody reaps the orphans of a container, they stay as zombies.
        states = [Path(f"/proc/{pid}/stat") for pid in pids]
        return all(not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z" for state in states)

    wait_until(all_ended, 20, "the end of the orphans")


def test_a_program_that_cannot_start_is_named_with_its_log(tmp_path):
    plane = ControlPlane(tmp_path, crds=(), scheduler=False)
    (tmp_path / "etcd").write_text("in the way")
    with pytest.raises(RuntimeError, match=r"(?s)etcd ended with .*The end of its log:.*not a directory"):
        plane.start()


def test_kuberay_makes_a_cluster_and_a_head_pod_that_the_scheduler_cannot_place(control_plane, namespace):
    control_plane.apply(ray_job("job"), namespace)
    cluster = only(control_plane, "ray.io/v1", "RayCluster", namespace)
    assert [owner.name for owner in cluster.metadata.ownerReferences] == ["job"]
    assert cluster.metadata.labels["of"] == "the-job"

    pod = only(control_plane, "v1", "Pod", namespace)
    assert pod.metadata.labels["ray.io/node-type"] == "head"
    assert pod.metadata.labels["of"] == "the-template"

    def verdict():
        found = control_plane.resource("v1", "Pod").get(name=pod.metadata.name, namespace=namespace)
        return [entry for entry in found.status.conditions or [] if entry.type == "PodScheduled"]

    (condition,) = wait_until(verdict, SECONDS, "the scheduler")
    assert (condition.status, condition.reason) == ("False", "Unschedulable")
    job = control_plane.resource("ray.io/v1", "RayJob").get(name="job", namespace=namespace)
    assert job.status.jobDeploymentStatus == "Initializing"


def test_what_is_owned_goes_with_its_owner(control_plane, namespace):
    (owner,) = control_plane.apply(config_map("owner"), namespace)
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid}
    control_plane.apply([config_map("owned", reference), config_map("free")], namespace)
    maps = control_plane.resource("v1", "ConfigMap")
    maps.delete(name="owner", namespace=namespace)

    def is_gone():
        return "owned" not in [found.metadata.name for found in maps.get(namespace=namespace).items]

    wait_until(is_gone, SECONDS, "the garbage collector")
    assert maps.get(name="free", namespace=namespace)


def test_a_kind_of_ours_is_checked_by_its_crd(control_plane, namespace):
    (good,) = documents(ROOT / "examples/demo/pretrain.yaml")
    control_plane.apply(good, namespace)
    bad = {**good, "spec": {**good["spec"], "compute": {"workers": 0}}}
    with pytest.raises(Exception, match=r"spec\.compute\.workers") as refused:
        control_plane.apply(bad, namespace)
    assert refused.value.status == 422


def test_a_service_account_has_its_own_rights_only(control_plane, namespace):
    path = control_plane.kubeconfig_for_service_account(namespace, "default")
    command = [control_plane.kubectl(), "--kubeconfig", path, "get", "pods"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert f"system:serviceaccount:{namespace}:default" in answer.stderr
    assert "cannot list resource" in answer.stderr


def test_the_crds_of_kueue_are_there(control_plane):
    assert control_plane.resource("kueue.x-k8s.io/v1beta2", "LocalQueue").namespaced


def test_the_scheduler_uses_nodes_on_paper(control_plane, namespace):
    # A label of its own: other tests count on pods finding no place.
    name = f"paper-{namespace}"
    control_plane.add_node(name, gpus=2)
    try:
        taint = [{"key": "of", "value": namespace, "effect": "NoSchedule"}]
        control_plane.resource("v1", "Node").patch(
            name=name, body={"spec": {"taints": taint}}, content_type="application/merge-patch+json"
        )
        limits = {"limits": {"nvidia.com/gpu": "2"}}
        spec = {"containers": [{**RAY_CONTAINER, "resources": limits}], "tolerations": [{"operator": "Exists"}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        control_plane.apply(pod, namespace)
        pods = control_plane.resource("v1", "Pod")
        wait_until(lambda: pods.get(name="pod", namespace=namespace).spec.nodeName == name, SECONDS, "the scheduler")
    finally:
        control_plane.remove_node(name)


def ask(proxy, plane, path, method="GET"):
    request = urllib.request.Request(proxy.url + path, method=method)
    request.add_header("Authorization", f"Bearer {plane.token}")
    trust = ssl.create_default_context(cafile=plane.certificate)
    with urllib.request.urlopen(request, timeout=5, context=trust) as answer:
        return answer.read().decode()


def test_the_proxy_fails_as_its_rules_say(control_plane, namespace, tmp_path):
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    rules = [
        Rule("respond", path="configmaps", status=429, retry_after=3, watch=False, times=1),
        Rule("duplicate", path="watch=1&d"),
        Rule("cut", path="watch=1&c", events=1),
        Rule("silence", path="watch=1&s", events=1),
        Rule("expire", path="watch=1&e"),
    ]
    with FaultyProxy(control_plane.url, control_plane.certificate, control_plane.certificate_key, rules) as proxy:
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(proxy, control_plane, maps)
        assert (refused.value.code, refused.value.headers["Retry-After"]) == (429, "3")
        wait_until(
            lambda: "kube-root-ca.crt" in ask(proxy, control_plane, maps), SECONDS, "the namespace's first object"
        )
        assert ask(proxy, control_plane, f"{maps}?watch=1&d&timeoutSeconds=1").count('"ADDED"') == 2
        assert '"code": 410' in ask(proxy, control_plane, f"{maps}?watch=1&e")
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            ask(proxy, control_plane, f"{maps}?watch=1&c")
        with pytest.raises(TimeoutError):
            ask(proxy, control_plane, f"{maps}?watch=1&s&timeoutSeconds=1")

        path = tmp_path / "config"
        certificate = control_plane.certificate
        write_kubeconfig(path, proxy.url, control_plane.token, certificate=certificate, namespace=namespace)
        command = [control_plane.kubectl(), "--kubeconfig", path, "create", "configmap", "made"]
        subprocess.run(command, check=True, capture_output=True)
        assert [(entry.method, entry.status) for entry in proxy.writes("configmaps")] == [("POST", 201)]
        assert {entry.fault for entry in proxy.log} == {None, "respond", "duplicate", "cut", "silence", "expire"}


def test_kuberay_can_come_and_go(tmp_path):
    with ControlPlane(tmp_path, crds=("plinth",), scheduler=False) as plane:
        plane.install_kuberay_crds()
        plane.start_kuberay()
        namespace = plane.create_namespace()
        plane.apply(ray_job("first"), namespace)
        only(plane, "ray.io/v1", "RayCluster", namespace)
        plane.stop_kuberay()
        plane.stop_api_server()
        plane.start_api_server()
        plane.request("PATCH", *finalizers_off(namespace))
        plane.remove_kuberay_crds()
        # What serves a kind ends a moment after its definition.
        wait_until(lambda: answer_to(plane, "/apis/ray.io/v1/rayjobs") == 404, 30, "the end of the kind")
        assert re.search("Starting workers", plane.log("kuberay-operator").read_text())


def answer_to(plane, path):
    """The status code of a GET."""
    try:
        plane.request("GET", path)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def finalizers_off(namespace):
    """What KubeRay would do if it still ran."""
    body = b'{"metadata": {"finalizers": null}}'
    return f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs/first", body, "application/merge-patch+json"
