"""The README's cluster quick start, run as it stands there by bash: everything behind the installation.

The installation is what `release` does; its lines that need a registry or a chart repository cannot run here.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cluster.control_plane import wait_until
from cluster.images import image
from plinth_release import DRAIN_SECONDS, Release
from teams import add_volume

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
NAMESPACE = "team-a"
UNTIL_FORWARDED = "until curl --silent --output /dev/null localhost:8000/health; do sleep 0.2; done"
"""Who pastes the lines one by one waits for a forwarded port without noticing."""


def test_its_commands_lead_from_a_namespace_to_an_answer(release: Release, tmp_path: Path):
    for claim in ("corpora", "checkpoints", "plinth"):
        add_volume(release.node, tmp_path / "volumes", NAMESPACE, claim, size="20Gi", modes=("ReadWriteMany",))
    checkout, environment = prepared(release, tmp_path)
    install, namespace, apply, ask = commands()
    assert "helm install plinth charts/plinth" in install
    for commands_of_a_step in (namespace, apply):
        bash(commands_of_a_step, checkout, environment)
    answer = bash(ask.replace(" &\n", f" &\n{UNTIL_FORWARDED}\n") + "kill %1\n", checkout, environment)
    assert '"role":"assistant"' in answer.replace(" ", "")
    promote, delete = inline_commands()
    bash(f"{promote}\n{delete}", checkout, environment)
    left = "kubectl get plinth,rayjobs,rayservices --output name"
    left = f"{left}; kubectl get pods --selector ray.io/node-type --output name"
    # The pods of a service that nobody takes over go when their time to drain is over.
    wait_until(lambda: not bash(left, checkout, environment), DRAIN_SECONDS + 120, "the end of everything")


def prepared(release: Release, folder: Path) -> tuple[Path, dict[str, str]]:
    """The examples with an image of Python that is on this node, and what a shell needs to find kubectl and cluster."""
    checkout = folder / "checkout"
    shutil.copytree(ROOT / "examples", checkout / "examples")
    job = checkout / "examples" / "demo" / "data" / "job.yaml"
    text, replaced = re.subn(r"(?m)^( *image:) .*$", rf"\1 {image('workloads')}", job.read_text())
    assert replaced == 1
    job.write_text(text)
    plane = release.node.plane
    kubeconfig = Path(shutil.copy(plane.kubeconfig, folder / "kubeconfig"))
    path = os.pathsep.join([str(Path(plane.kubectl()).parent), os.environ["PATH"]])
    return checkout, {**os.environ, "KUBECONFIG": str(kubeconfig), "PATH": path}


def section() -> str:
    """The quick start's text."""
    (found,) = re.findall(r"(?ms)^## On a cluster\n(.*?)^## ", (ROOT / "README.md").read_text())
    return str(found)


def commands() -> list[str]:
    """Its blocks of bash, in their order."""
    return re.findall(r"(?ms)^```bash\n(.*?)^```$", section())


def inline_commands() -> list[str]:
    """What its last step runs."""
    promote = section().partition("**Promote**")[2]
    return [" ".join(command.split()) for command in re.findall(r"`(kubectl [^`]+)`", promote)]


def bash(script: str, folder: Path, environment: dict[str, str]) -> str:
    """What a script prints; an assertion with what it said where it fails."""
    command = ["bash", "-euo", "pipefail", "-c", script]
    answer = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1200
    )
    assert answer.returncode == 0, f"{script}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout
