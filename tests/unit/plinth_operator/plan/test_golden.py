"""The children of the examples are those that were reviewed, and hold no field that KubeRay 1.6 does not know."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import golden

RAYJOB = {
    *("entrypoint", "submissionMode", "submitterConfig", "submitterPodTemplate", "backoffLimit", "suspend"),
    *("shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec", "activeDeadlineSeconds", "metadata"),
    *("preRunningDeadlineSeconds", "runtimeEnvYAML", "jobId", "clusterSelector", "managedBy", "deletionStrategy"),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources"),
}
RAYSERVICE = {
    *("serveConfigV2", "rayClusterConfig", "upgradeStrategy", "serveService", "excludeHeadPodFromServeSvc"),
    *("rayClusterDeletionDelaySeconds", "managedBy", "serviceUnhealthySecondThreshold"),
    "deploymentUnhealthySecondThreshold",
}
CLUSTER = {
    *("rayVersion", "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions"),
    *("headGroupSpec", "headServiceAnnotations", "managedBy", "suspend", "workerGroupSpecs"),
}
HEAD = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
GROUP = {
    *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams"),
    *("replicas", "resources", "scaleStrategy", "suspend", "template"),
}
AUTOSCALER = {
    *("env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext"),
    *("upscalingMode", "version", "volumeMounts"),
}
"""The fields in the CRDs of KubeRay 1.6.2; upgradeStrategy of a cluster is left out, as KubeRay refuses it here."""

EXAMPLES = [pytest.param(example, id=example.stem) for example in golden.EXAMPLES]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_children_are_those_that_were_reviewed(example: Path):
    difference = golden.differences(example)
    assert not difference, f"{difference}\nif this is meant: make golden"


def test_every_folder_belongs_to_an_example():
    folders = {path.name for path in golden.FOLDER.iterdir()}
    assert folders == {example.stem for example in golden.EXAMPLES}


@pytest.mark.parametrize("example", EXAMPLES)
def test_kuberay_knows_every_field(example: Path):
    children = [yaml.safe_load(text) for text in golden.rendered(example).values()]
    (child,) = [child for child in children if child["apiVersion"] == "ray.io/v1"]
    assert set(child["spec"]) <= {"RayJob": RAYJOB, "RayService": RAYSERVICE}[child["kind"]]
    cluster: dict[str, Any] = child["spec"].get("rayClusterSpec") or child["spec"]["rayClusterConfig"]
    assert set(cluster) <= CLUSTER
    assert set(cluster["headGroupSpec"]) <= HEAD
    assert all(set(group) <= GROUP for group in cluster["workerGroupSpecs"])
    assert set(cluster.get("autoscalerOptions", {})) <= AUTOSCALER


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_difference_is_shown_line_by_line(example: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    monkeypatch.setattr(golden, "ROOT", tmp_path)
    assert "+kind: NetworkPolicy" in golden.differences(example)
    golden.refresh(example)
    assert golden.differences(example) == ""
