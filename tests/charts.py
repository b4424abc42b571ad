"""The chart as the real Helm sees it: rendered, checked, installed into a control plane and removed again."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cluster.build import COMPONENTS, ensure_assets
from cluster.control_plane import ControlPlane

CHART = Path(__file__).resolve().parents[1] / "charts" / "plinth"
TRACKING_URI = "http://mlflow.example"
Values = Mapping[str, Any]
"""Values of the chart by their paths, with dots."""

NONE: Values = {}

MLFLOW: Values = {"mlflow.enabled": True, "settings.trackingUri": ""}
"""With the chart's own MLflow, which these functions leave out by default."""


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm, which is built where it is missing; the caller looks at the exit code."""
    components = tuple(component for component in COMPONENTS if component.name == "helm")
    command = [str(ensure_assets(components).binary("helm")), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HELM_")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def chart_arguments(values: Values) -> list[str]:
    """A flag for each value; by default for an MLflow elsewhere."""
    given = {"mlflow.enabled": False, "settings.trackingUri": TRACKING_URI, **values}
    return [word for path, value in given.items() for word in ("--set-json", f"{path}={json.dumps(value)}")]


def rendered(values: Values = NONE, *, release: str = "plinth") -> list[dict[str, Any]]:
    """Every object of the chart as it would be installed into the namespace `ops`."""
    answer = helm("template", release, str(CHART), "--namespace", "ops", *chart_arguments(values))
    assert answer.returncode == 0, answer.stderr
    return [document for document in yaml.safe_load_all(answer.stdout) if document]


def of_kind(documents: list[dict[str, Any]], *kinds: str, component: str = "") -> list[dict[str, Any]]:
    """The objects of these kinds, of one component where it is given."""
    label = "app.kubernetes.io/component"
    return [
        document
        for document in documents
        if document["kind"] in kinds and component in ("", document["metadata"]["labels"].get(label))
    ]


def deployment(documents: list[dict[str, Any]], component: str = "operator") -> dict[str, Any]:
    """The Deployment of a component."""
    (found,) = of_kind(documents, "Deployment", component=component)
    return found


def container(documents: list[dict[str, Any]], component: str = "operator") -> dict[str, Any]:
    """The one container of a component's pods."""
    (found,) = deployment(documents, component)["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def refusal(values: Values, *flags: str) -> str:
    """What Helm says of values that the chart refuses."""
    answer = helm("template", "plinth", str(CHART), "--namespace", "ops", *flags, *chart_arguments(values))
    assert answer.returncode != 0, answer.stdout
    return answer.stderr


@contextmanager
def installed(plane: ControlPlane, namespace: str, values: Values = NONE, *, release: str) -> Iterator[str]:
    """The chart in a control plane, without its CRDs, which are there; gives what Helm prints."""
    target = ("--kubeconfig", str(plane.kubeconfig), "--namespace", namespace)
    answer = helm("install", release, str(CHART), "--skip-crds", *target, *chart_arguments(values))
    assert answer.returncode == 0, answer.stderr
    try:
        yield answer.stdout
    finally:
        answer = helm("uninstall", release, *target)
        assert answer.returncode == 0, answer.stderr


def upgraded(plane: ControlPlane, namespace: str, values: Values = NONE, *, release: str) -> None:
    """The same release with other values."""
    target = ("--kubeconfig", str(plane.kubeconfig), "--namespace", namespace)
    answer = helm("upgrade", release, str(CHART), "--skip-crds", *target, *chart_arguments(values))
    assert answer.returncode == 0, answer.stderr
