"""Plinth on a node as its users install it: KubeRay first, then the chart by Helm, then a namespace for a team."""

import base64
import json
import urllib.request
from pathlib import Path

from charts import CHART, helm
from cluster.addons import KUBERAY_NAMESPACE, kuberay_objects
from cluster.images import image
from cluster.node import Node
from teams import OPERATOR_NAMESPACE, Document, Team, add_volume, kubectl

NAMESPACE = OPERATOR_NAMESPACE
TRACKING_URL = f"http://plinth-mlflow.{NAMESPACE}.svc.cluster.local:5000"
DRAIN_SECONDS = 60
"""settings.drainSeconds: what a pod has for saving."""

VALUES = {
    "image.pullPolicy": "Never",
    "workloadImage.pullPolicy": "Never",
    # Requests that leave room for head, two workers and a service on two cores.
    "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
    "mlflow.resources": {"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"memory": "3Gi"}},
    "mlflow.workers": 1,
    "settings.headCpus": "200m",
    # A service whose pods all go waits that long for others to take over.
    "settings.drainSeconds": DRAIN_SECONDS,
    "mlflow.persistence.keep": False,
}


class Release:
    """What was installed, and MLflow as its administrator sees it."""

    def __init__(self, node: Node, folder: Path) -> None:
        """Take the node; volumes and the rest go below the folder."""
        self.node, self._folder = node, folder
        self._password = ""

    def install(self) -> None:
        """Install KubeRay and the chart, and wait until everything is ready."""
        plane = self.node.plane
        plane.apply(kuberay_objects())
        self._wait_for_deployment(KUBERAY_NAMESPACE, "kuberay-operator")
        plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        add_volume(self.node, self._folder, NAMESPACE, "plinth-mlflow", size="20Gi")
        images = {}
        for value, name in {"image": "operator", "workloadImage": "workloads"}.items():
            images[f"{value}.repository"], _, images[f"{value}.tag"] = image(name).rpartition(":")
        values = [f"{path}={json.dumps(value)}" for path, value in {**VALUES, **images}.items()]
        sets = [word for value in values for word in ("--set-json", value)]
        target = ("--kubeconfig", str(plane.kubeconfig), "--namespace", NAMESPACE)
        answer = helm("install", "plinth", str(CHART), "--skip-crds", *target, *sets)
        assert answer.returncode == 0, answer.stderr
        for name in ("plinth-mlflow", "plinth"):
            self._wait_for_deployment(NAMESPACE, name)
        secret = plane.request("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/plinth-mlflow-admin")["data"]
        self._password = base64.b64decode(secret["password"]).decode()

    def team(self, name: str) -> Team:
        """A namespace with credentials for MLflow, as docs/operations.md says."""
        team = Team(self.node, name, self._folder)
        secret = self.kubectl("exec", "deploy/plinth-mlflow", "--", "python", "/etc/mlflow/add_namespace.py", name)
        team.kubectl("apply", "--server-side", "-f", "-", text=secret)
        return team

    def volume(self, claim: str) -> Path:
        """The folder of one of its claims."""
        return self._folder / NAMESPACE / claim

    def kubectl(self, *arguments: str) -> str:
        """What the command prints, in the release's namespace."""
        return kubectl(self.node, NAMESPACE, *arguments)

    def _wait_for_deployment(self, namespace: str, name: str) -> None:
        wait = ("wait", "--for=condition=Available", f"deployment/{name}", "--timeout=240s")
        try:
            kubectl(self.node, namespace, *wait)
        except AssertionError as error:
            told = [("describe", "pods"), ("logs", f"deployment/{name}", "--tail=50")]
            shown = [kubectl(self.node, namespace, *words, check=False) for words in told]
            raise AssertionError("\n".join([str(error), *shown])) from None

    # ---- MLflow

    def mlflow(self, path: str, body: Document | None = None) -> Document:
        """One request to MLflow's REST API: POST with a body, GET without."""
        request = urllib.request.Request(
            f"{TRACKING_URL}/api/2.0/mlflow/{path}", json.dumps(body).encode() if body else None
        )
        login = base64.b64encode(f"admin:{self._password}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: Document = json.loads(answer.read())
        return found

    def metric(self, run_id: str, name: str) -> list[Document]:
        """Every value of a metric: step, value and timestamp (milliseconds)."""
        page = self.mlflow(f"metrics/get-history?run_id={run_id}&metric_key={name}&max_results=25000")
        found: list[Document] = page.get("metrics", [])
        return found
