"""One namespace of a control plane, with the verbs that tests of the operator need."""

import json
from pathlib import Path
from typing import Any

from cluster.control_plane import ControlPlane, wait_until

PLURALS = {"PretrainJob": "pretrainjobs", "FineTuneJob": "finetunejobs", "ModelService": "modelservices"}
Document = dict[str, Any]


class Namespace:
    """Where one test has its objects; what goes wrong is told with the end of the operator's log."""

    def __init__(self, plane: ControlPlane, name: str, log: Path) -> None:
        self.plane, self.name, self._log = plane, name, log

    def path(self, group: str, plural: str, name: str = "") -> str:
        """The path of a kind (`group` with its version, "" for the core), or of one object."""
        base = f"/apis/{group}" if group else "/api/v1"
        return f"{base}/namespaces/{self.name}/{plural}" + (f"/{name}" if name else "")

    def path_of(self, document: Document) -> str:
        """The path of one of our resources."""
        return self.path("plinth.dev/v1alpha1", PLURALS[document["kind"]], document["metadata"]["name"])

    def items(self, group: str, plural: str) -> list[Document]:
        """Every object of a kind."""
        found: list[Document] = self.plane.request("GET", self.path(group, plural))["items"]
        return found

    def claim(self, *names: str, mode: str = "ReadWriteMany") -> None:
        """Create PersistentVolumeClaims."""
        for name in names:
            spec = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
            meta = {"name": name, "namespace": self.name}
            self.plane.apply(
                {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}, self.name
            )

    def create(self, document: Document) -> Document:
        """Create one of our resources."""
        document["metadata"]["namespace"] = self.name
        path = self.path("plinth.dev/v1alpha1", PLURALS[document["kind"]])
        return self.plane.request("POST", path, json.dumps(document).encode())

    def get(self, document: Document) -> Document:
        """One of our resources as it is now."""
        return self.plane.request("GET", self.path_of(document))

    def delete(self, document: Document) -> None:
        """Delete one of our resources."""
        self.plane.request("DELETE", self.path_of(document))

    def merge(self, document: Document, patch: Document) -> Document:
        """Merge a patch into one of our resources."""
        return self.patch(self.path_of(document), patch)

    def patch(self, path: str, patch: Document) -> Document:
        """Merge a patch into any object."""
        return self.plane.request("PATCH", path, json.dumps(patch).encode(), "application/merge-patch+json")

    def wait_status(self, document: Document, seconds: float = 60, **wanted: Any) -> Document:
        """Wait until the status has these fields; the status."""

        def reached() -> Document | None:
            status: Document = self.get(document).get("status", {})
            return status if all(status.get(field) == value for field, value in wanted.items()) else None

        try:
            found: Document = wait_until(reached, seconds, f"status {wanted}")
        except TimeoutError as error:
            status = json.dumps(self.get(document).get("status"), indent=1)
            raise AssertionError(f"{error}; it is {status}\n{self.end_of_log()}") from error
        return found

    def end_of_log(self) -> str:
        """The last words of the operator."""
        return self._log.read_text()[-3000:]

    def ray_jobs(self) -> list[str]:
        """The names of the RayJobs, sorted."""
        return sorted(item["metadata"]["name"] for item in self.items("ray.io/v1", "rayjobs"))
