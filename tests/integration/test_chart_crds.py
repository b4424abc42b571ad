"""The CRDs of an installation, which Helm makes and leaves alone: what docs/operations.md says about them holds."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from charts import CHART, chart_arguments, helm
from cluster.control_plane import CRD_PATH, ControlPlane
from makers import service_document

pytestmark = pytest.mark.integration

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
NAMESPACE = "plinth-system"
FORCE = "--force-conflicts"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane whose CRDs of ours are Helm's."""
    folder = tmp_path_factory.mktemp("crds")
    with ControlPlane(folder, crds=("kuberay",), scheduler=False) as plane:
        release(plane, "install", "--create-namespace", *chart_arguments({}))
        answer = kubectl(plane, "apply", "-f", "-", text=json.dumps(service_document(name="before")))
        assert answer.returncode == 0, answer.stderr
        yield plane


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The chart's CRDs as of another version."""
    for path in (CHART / "crds").glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text().replace("name: Phase", "name: State"))
    return tmp_path


def release(plane: ControlPlane, command: str, *arguments: str) -> None:
    """Run Helm on the release."""
    chart = () if command == "uninstall" else (str(CHART),)
    target = ("--kubeconfig", str(plane.kubeconfig), "--namespace", NAMESPACE)
    answer = helm(command, "plinth", *chart, *target, *arguments)
    assert answer.returncode == 0, answer.stderr


def kubectl(plane: ControlPlane, *words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run kubectl, which asks again where a kind is just being changed; the caller looks at the exit code."""
    command = [str(plane.kubectl()), "--kubeconfig", str(plane.kubeconfig), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, input=text)


def documented(folder: Path) -> list[str]:
    """The arguments of the documented command, for CRDs in another folder."""
    (line,) = re.findall(r"^kubectl (apply .* charts/plinth/crds)$", OPERATIONS.read_text(), re.MULTILINE)
    return [str(folder) if word == "charts/plinth/crds" else word for word in shlex.split(line)]


def first_column(plane: ControlPlane) -> str:
    """The name of the first column of `kubectl get modelservices`."""
    found = plane.request("GET", f"{CRD_PATH}/modelservices.plinth.dev")
    return str(found["spec"]["versions"][0]["additionalPrinterColumns"][0]["name"])


def test_an_upgrade_changes_no_crd_and_the_documented_command_does(plane: ControlPlane, newer: Path):
    release(plane, "upgrade", *chart_arguments({}))
    command = documented(newer)
    refused = kubectl(plane, *(word for word in command if word != FORCE))
    assert 'conflict with "helm"' in refused.stderr
    assert first_column(plane) == "Phase"
    answer = kubectl(plane, *command)
    assert answer.returncode == 0, answer.stderr
    assert first_column(plane) == "State"
    assert kubectl(plane, "get", "modelservices", "--output", "name").stdout.split() == [
        "modelservice.plinth.dev/before"
    ]


def test_an_uninstallation_leaves_crds_and_resources(plane: ControlPlane):
    release(plane, "uninstall")
    assert kubectl(plane, "get", "modelservices", "--output", "name").stdout.split() == [
        "modelservice.plinth.dev/before"
    ]
