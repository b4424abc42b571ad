"""What a team sees of a cluster with a node: its namespace, kubectl, volumes, and its resources as they change."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.control_plane import wait_until
from cluster.node import Node
from cluster.node_programs import NODE_NAME

Document = dict[str, Any]
OPERATOR_NAMESPACE = "plinth-system"
PENDING, ENDED = "Pending", ("Succeeded", "Failed")


class Team:
    """A namespace on the node where the restricted Pod Security level is enforced."""

    def __init__(self, node: Node, name: str, volumes: Path) -> None:
        """Make the namespace; volumes are folders below `volumes`."""
        self.node, self.name, self._volumes = node, name, volumes
        enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": name, "labels": enforced}
        node.plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    # ---- kubectl

    def kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        """What the command prints; without `check`, also where it fails, and with what it says about that."""
        return kubectl(self.node, self.name, *arguments, text=text, check=check)

    def apply(self, *documents: Document) -> None:
        """Apply documents as `kubectl apply -f` does."""
        self.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))

    def get(self, kind: str, name: str) -> Document:
        """An object as it is now."""
        found: Document = json.loads(self.kubectl("get", kind, name, "--output", "json"))
        return found

    def items(self, kind: str, selector: str = "") -> list[Document]:
        """Objects of a kind, those with the labels of a selector."""
        answer = self.kubectl("get", kind, "--selector", selector, "--output", "json")
        found: list[Document] = json.loads(answer)["items"]
        return found

    # ---- volumes

    def volume(self, claim: str, *, size: str = "20Gi", modes: tuple[str, ...] = ("ReadWriteMany",)) -> Path:
        """A folder of this machine, kept for a claim of that name."""
        return add_volume(self.node, self._volumes, self.name, claim, size=size, modes=modes)

    def volume_folder(self, claim: str) -> Path:
        """What `volume` gave for a claim."""
        return self._volumes / self.name / claim

    # ---- our resources

    def status(self, kind: str, name: str) -> Document:
        """The status of a resource, empty before there is one."""
        found: Document = self.get(kind, name).get("status", {})
        return found

    def wait(
        self, kind: str, name: str, is_there: Callable[[Document], Any], seconds: float, *, what: str = ""
    ) -> Document:
        """Wait until a status is as wanted; it. A job that ends otherwise is not waited for."""

        def look() -> Document | None:
            status = self.status(kind, name)
            if is_there(status):
                return status
            ended = status.get("phase") in ENDED and kind != "modelservice"
            assert not ended, f"{name} ended as {status['phase']}: {json.dumps(status, indent=1)}"
            return None

        try:
            found: Document = wait_until(look, seconds, what or f"{kind} {name}")
        except (TimeoutError, AssertionError) as error:
            raise AssertionError(f"{error}\n{self.story(kind, name)}") from None
        return found

    def wait_phase(self, kind: str, name: str, phase: str, seconds: float) -> Document:
        """Wait for a phase; the status."""
        return self.wait(kind, name, lambda status: status.get("phase") == phase, seconds, what=f"{name} {phase}")

    def wait_step(self, kind: str, name: str, step: int, seconds: float) -> Document:
        """Wait until a job has trained that far; the status."""
        return self.wait(kind, name, lambda status: step_of(status) >= step, seconds, what=f"{name} at step {step}")

    def pods(self, owner: str, **labels: str) -> list[Document]:
        """The pods of one of our resources that have not ended."""
        selector = ",".join([f"plinth.dev/name={owner}", *(f"{name}={value}" for name, value in labels.items())])
        return [pod for pod in self.items("pods", selector) if pod["status"]["phase"] in ("Pending", "Running")]

    def pod(self, owner: str, node_type: str) -> str:
        """The name of one pod by its Ray node type, head or worker, that has not ended and is not asked to."""
        pods: list[Document] = self.items("pods", f"plinth.dev/name={owner},ray.io/node-type={node_type}")
        return min(str(pod["metadata"]["name"]) for pod in pods if "deletionTimestamp" not in pod["metadata"])

    def story(self, kind: str, name: str) -> str:
        """Everything that helps to see why a resource is not where it should be."""
        parts = [json.dumps(self.status(kind, name), indent=1)]
        parts.append(self.kubectl("get", "pods,rayjobs,rayservices", "--output", "wide", check=False))
        # What else has the node's CPUs, where a pod waits for some.
        parts.append(self.kubectl("get", "pods", "--all-namespaces", "--output", "wide", check=False))
        parts.append(self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)[-6000:])
        for pod in self.items("pods", f"plinth.dev/name={name}"):
            pod_name = pod["metadata"]["name"]
            parts.append(f"--- {pod_name}\n" + self.kubectl("logs", pod_name, "--tail=40", check=False))
        said = self.kubectl("logs", "--namespace", OPERATOR_NAMESPACE, "deployment/plinth", "--tail=60", check=False)
        return "\n".join([*parts, f"--- the operator\n{said}"])


def kubectl(node: Node, namespace: str, *arguments: str, text: str | None = None, check: bool = True) -> str:
    """What the command prints; without `check`, also where it fails, and with what it says about that."""
    target = ("--kubeconfig", str(node.plane.kubeconfig), "--namespace", namespace)
    command = [str(node.plane.kubectl()), *target, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, input=text)
    assert not check or answer.returncode == 0, f"kubectl {' '.join(arguments)}: {answer.stderr}"
    return answer.stdout if check else answer.stdout + answer.stderr


def step_of(status: Document) -> int:
    """The step that a job's status tells, 0 before the first."""
    return int(status.get("progress", {}).get("step") or 0)


def add_volume(
    node: Node, folder: Path, namespace: str, claim: str, *, size: str, modes: tuple[str, ...] = ("ReadWriteOnce",)
) -> Path:
    """A PersistentVolume over a folder, which a claim gets whenever it is made."""
    path = folder / namespace / claim
    path.mkdir(parents=True)
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE_NAME]}]}
    node.plane.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{namespace}-{claim}"},
            "spec": {
                "capacity": {"storage": size},
                "accessModes": list(modes),
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "",
                "claimRef": {"namespace": namespace, "name": claim},
                # Not a hostPath, whose owner Kubernetes does not change to the pods' fsGroup.
                "local": {"path": str(path)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
            },
        }
    )
    return path
