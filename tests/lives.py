"""What tests do to a resource in its life, and what it has come to in the end: two lives can be compared.

Everything that differs between two namespaces on its own account (uids, run ids, times) is put under one name.
"""

import json
import urllib.request
from typing import Any

from namespaces import Document, Namespace

RAY, NETWORKING = "ray.io/v1", "networking.k8s.io/v1"
CHILDREN = (
    ("", "configmaps"),
    (NETWORKING, "networkpolicies"),
    (NETWORKING, "ingresses"),
    (RAY, "rayjobs"),
    (RAY, "rayservices"),
)
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
CRASHED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": "exit code 1"}


class Runs:
    """The runs of an MLflow server, by the uid of their resource."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def of(self, uid: str) -> list[Document]:
        """Every run with the uid's tag, whatever its state."""
        experiments = self._post("experiments/search", {"max_results": 1000})["experiments"]
        found = self._post(
            "runs/search",
            {
                "experiment_ids": [experiment["experiment_id"] for experiment in experiments],
                "filter": f"tags.`plinth.uid` = '{uid}'",
            },
        )
        runs: list[Document] = found.get("runs", [])
        return runs

    def states(self, uid: str) -> list[str]:
        """The states of these runs."""
        return sorted(run["info"]["status"] for run in self.of(uid))

    def finish(self, uid: str, **tags: str) -> None:
        """What the workload does at its end: tags with what came of it, and the run FINISHED."""
        (run,) = self.of(uid)
        run_id = run["info"]["run_id"]
        for tag, value in tags.items():
            self._post("runs/set-tag", {"run_id": run_id, "key": f"plinth.{tag}", "value": value})
        self._post("runs/update", {"run_id": run_id, "status": "FINISHED", "end_time": 1})

    def tell(self, uid: str, metric: str, value: float, *, step: int) -> None:
        """What a workload logs on its way."""
        (run,) = self.of(uid)
        told = {"run_id": run["info"]["run_id"], "key": metric, "value": value, "step": step, "timestamp": 1}
        self._post("runs/log-metric", told)

    def _post(self, path: str, body: Document) -> Document:
        request = urllib.request.Request(f"{self._uri}/api/2.0/mlflow/{path}", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: Document = json.loads(answer.read())
            return found


def tell_ray_jobs(cluster: Namespace, status: Document, name: str = "") -> None:
    """Give RayJobs (those whose name starts with `name`) a status as KubeRay would, which leaves ended ones alone."""
    for ray_job in cluster.ray_jobs():
        if ray_job.startswith(name):
            cluster.patch(cluster.path(RAY, "rayjobs", ray_job) + "/status", {"status": status})


def picture(cluster: Namespace, made: Document, runs: Runs) -> Document:
    """What a namespace holds for its one resource: its status, its children as we set them, its MLflow runs.

    Args:
        cluster: The namespace.
        made: The resource as the API server had it when it was created.
        runs: Of the MLflow server.
    """
    uid = made["metadata"]["uid"]
    found = runs.of(uid)
    state = {
        "resource": _resource(cluster, made),
        "children": {
            plural: [_child(item) for item in cluster.items(group, plural) if _owned(item, uid)]
            for group, plural in CHILDREN
        },
        "clusters": len(cluster.items(RAY, "rayclusters")),
        "runs": [run["info"]["status"] for run in found],
    }
    text = json.dumps(state, sort_keys=True)
    names = {f"{made['metadata']['name']}-{uid[:5]}": "NAME", uid: "UID", cluster.name: "NAMESPACE"}
    for run in found:
        names[run["info"]["run_id"]] = "RUN"
    for name, word in names.items():
        text = text.replace(name, word)
    normalised: Document = json.loads(text)
    return normalised


def _resource(cluster: Namespace, made: Document) -> Document | None:
    plural = cluster.path_of(made).rsplit("/", 2)[1]
    known = cluster.items("plinth.dev/v1alpha1", plural)
    if not known:
        return None
    (found,) = known
    status = found.get("status", {})
    return {
        "phase": status.get("phase"),
        "reason": status.get("reason"),
        "isCurrent": status.get("observedGeneration") == found["metadata"]["generation"],
        "attempts": [
            {field: attempt.get(field) for field in ("number", "rayJob", "outcome")}
            for attempt in status.get("attempts", ())
        ],
        "run": status.get("tracking", {}).get("runId"),
        "model": status.get("model"),
    }


def _owned(item: Document, uid: str) -> bool:
    return any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences", ()))


def _child(item: Document) -> Document:
    """An object as we made it; hashes hold the uid and differ with it."""
    meta = item["metadata"]
    annotations = {key: value for key, value in meta.get("annotations", {}).items() if not key.endswith("hash")}
    return {
        "name": meta["name"],
        "labels": meta["labels"],
        "annotations": annotations,
        "owners": meta["ownerReferences"],
        "deleting": "deletionTimestamp" in meta,
        "content": item.get("spec", item.get("data")),
    }


def events_of(cluster: Namespace, uid: str) -> list[tuple[Any, ...]]:
    """The Events of a resource: time, reason and message."""
    return [
        (event["firstTimestamp"], event["reason"], event["message"])
        for event in cluster.items("", "events")
        if event["involvedObject"].get("uid") == uid
    ]
