"""KubeRay and Kueue as their projects ship them, with images of this machine and sizes for a small node."""

import json
import subprocess
import urllib.error
from pathlib import Path
from typing import Any

from cluster.build import Assets
from cluster.control_plane import ControlPlane, wait_until
from cluster.images import image
from cluster.manifests import documents_of

KUBERAY_NAMESPACE = "kuberay-system"
KUEUE_NAMESPACE = "kueue-system"
START_SECONDS = 180.0


def kustomized(folder: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The CRDs of a kustomization as they are, whose megabytes take long to read, and every other object."""
    command = [str(Assets().binary("kubectl")), "kustomize", str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    texts = answer.stdout.split("\n---\n")
    crds = [text for text in texts if "\nkind: CustomResourceDefinition\n" in text]
    return crds, [found for text in texts if text not in crds for found in documents_of(text)]


def kuberay_objects() -> list[dict[str, Any]]:
    """KubeRay 1.6 in a namespace of its own; the control plane has its CRDs."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": KUBERAY_NAMESPACE}}
    _, objects = kustomized(Assets().copy("kuberay-config", "config") / "default")
    for found in objects:
        if "namespace" in found["metadata"]:
            found["metadata"]["namespace"] = KUBERAY_NAMESPACE
        for subject in found.get("subjects", ()):
            subject["namespace"] = KUBERAY_NAMESPACE
        if found["kind"] == "Deployment":
            use_local(found, image("kuberay"))
    return [namespace, *objects]


def install_kueue(plane: ControlPlane, folder: Path) -> None:
    """Install Kueue 0.15 with its webhooks and their certificates, and wait until it is ready.

    Its CRDs are applied over those of the control plane, which lack the webhooks that convert between versions.
    """
    crds, objects = kustomized(Assets().copy("kueue-controller", "config") / "default")
    folder.mkdir()
    files = [folder / f"{number:02}.yaml" for number in range(len(crds))]
    for file, text in zip(files, crds, strict=True):
        file.write_text(text)
    plane.install_crds(files)
    for found in objects:
        if found["kind"] == "Deployment":
            use_local(found, image("kueue"))
    plane.apply(objects)
    path = f"/apis/apps/v1/namespaces/{KUEUE_NAMESPACE}/deployments/kueue-controller-manager"
    wait_until(lambda: plane.request("GET", path)["status"].get("availableReplicas"), START_SECONDS, "Kueue")
    wait_until(lambda: takes_objects(plane), START_SECONDS, "Kueue's webhooks")


def takes_objects(plane: ControlPlane) -> bool:
    """Whether the API server reaches Kueue's webhooks: kube-proxy hears of a pod a moment after it is ready."""
    flavor = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "probe"}}
    try:
        plane.request("POST", "/apis/kueue.x-k8s.io/v1beta2/resourceflavors?dryRun=All", json.dumps(flavor).encode())
    except urllib.error.HTTPError:
        return False
    return True


def use_local(deployment: dict[str, Any], reference: str) -> None:
    """Run a Deployment's container from an image that is on the node, on what CPU is left."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container.pop("command", None)
    container |= {"image": reference, "imagePullPolicy": "Never"}
    container["resources"] = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}
