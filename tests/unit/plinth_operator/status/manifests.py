"""Manifests as the API server has them, cut to what is read; arguments replace what a test is about."""

import json
from typing import Any

UID = "0c3a1f6e-5d1c-4a55-9a5e-3a3a0f6d8b11"
RAY_JOB = "pycode-base-0c3a1-1"
CLUSTER = "pycode-base-0c3a1-1-xk2vd"
Document = dict[str, Any]

RUNS = {"running": {"startedAt": "2026-03-01T12:00:00Z"}}
"""State of a container that runs."""
NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
CUDA = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


def metadata(name: str, *, labels: Document | None = None, **more: Any) -> Document:
    return {
        "name": name,
        "namespace": "team-a",
        "uid": f"uid-of-{name}",
        "resourceVersion": "48213",
        "creationTimestamp": "2026-03-01T12:00:00Z",
        "labels": {"plinth.dev/uid": UID, **(labels or {})},
        **more,
    }


def ray_job(*, spec: Document | None = None, **status: Any) -> Document:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata(
            RAY_JOB,
            labels={"plinth.dev/attempt": "1"},
            annotations={"plinth.dev/hash": "h1", "plinth.dev/spec-hash": "s1"},
        ),
        "spec": {"suspend": False, **(spec or {})},
        "status": {
            "jobId": f"{RAY_JOB}-8vk5x",
            "rayClusterName": CLUSTER,
            "dashboardURL": f"{CLUSTER}-head-svc.team-a.svc:8265",
            "jobStatus": "RUNNING",
            "jobDeploymentStatus": "Running",
            "startTime": "2026-03-01T12:00:03Z",
            "succeeded": 0,
            "failed": 0,
            **status,
        },
    }


def failed_ray_job(**status: Any) -> Document:
    return ray_job(
        **{
            "jobStatus": "FAILED",
            "jobDeploymentStatus": "Failed",
            "reason": "AppFailed",
            "endTime": "2026-03-01T12:30:00.250000Z",
            **status,
        }
    )


def ray_cluster(*, labels: Document | None = None, **status: Any) -> Document:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {
            **metadata(CLUSTER),
            "labels": labels if labels is not None else {"plinth.dev/uid": UID},
            "ownerReferences": [{"apiVersion": "ray.io/v1", "kind": "RayJob", "name": RAY_JOB, "controller": True}],
        },
        "spec": {"headGroupSpec": {"template": {"metadata": {"labels": {"plinth.dev/uid": UID}}}}},
        "status": {
            "state": "ready",
            "conditions": [
                {"type": "HeadPodReady", "status": "True", "reason": "HeadPodRunningAndReady"},
                {"type": "RayClusterProvisioned", "status": "True", "reason": "AllPodRunningAndReadyFirstTime"},
            ],
            "readyWorkerReplicas": 2,
            "desiredWorkerReplicas": 2,
            **status,
        },
    }


def replica_failure(message: str) -> Document:
    return ray_cluster(
        state="", conditions=[{"type": "ReplicaFailure", "status": "True", "reason": "Failed", "message": message}]
    )


def pod(
    role: str = "worker",
    *,
    name: str | None = None,
    containers: list[Document] | None = None,
    init: list[Document] | None = None,
    conditions: list[Document] | None = None,
    node: str | None = "node-7",
    deleting: bool = False,
    cluster: str = CLUSTER,
    **status: Any,
) -> Document:
    labels = {"ray.io/node-type": role, "ray.io/cluster": cluster} if role != "submitter" else {"job-name": RAY_JOB}
    more = {"deletionTimestamp": "2026-03-01T12:20:00Z"} if deleting else {}
    prefix = RAY_JOB if role == "submitter" else CLUSTER
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(name or f"{prefix}-{role}-q7hx2", labels=labels, **more),
        "spec": {
            **({"nodeName": node} if node else {}),
            "initContainers": [{"name": "wait-gcs-ready", "image": "plinth-workloads:1"}],
            "containers": [{"name": f"ray-{role}", "image": "plinth-workloads:1"}],
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}] if conditions is None else conditions,
            "initContainerStatuses": init or [],
            "containerStatuses": containers or [],
            **status,
        },
    }


def container(name: str = "ray-worker", *, state: Document, last: Document | None = None, **more: Any) -> Document:
    return {
        "name": name,
        "image": "plinth-workloads:1",
        "ready": False,
        "restartCount": 0,
        "state": state,
        "lastState": last or {},
        **more,
    }


def waiting(reason: str, message: str | None = None) -> Document:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def terminated(exit_code: int, reason: str | None = "Error", message: str | None = None) -> Document:
    ended = {"exitCode": exit_code, "reason": reason, "message": message}
    return {"terminated": {key: value for key, value in ended.items() if value is not None}}


def unschedulable(message: str, role: str = "worker") -> Document:
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]
    return pod(role, phase="Pending", conditions=conditions, node=None)


def disrupted(reason: str, role: str = "worker", **more: Any) -> Document:
    return pod(role, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": reason}], **more)


def workload(*conditions: Document, active: bool | None = None) -> Document:
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "Workload",
        "metadata": {
            **metadata(f"rayjob-{RAY_JOB}-1f2e3"),
            "ownerReferences": [{"kind": "RayJob", "name": RAY_JOB, "uid": "1"}],
        },
        "spec": {"queueName": "team-a", **({"active": active} if active is not None else {})},
        "status": {"conditions": list(conditions)},
    }


def kueue_condition(kind: str, status: str, reason: str = "", message: str = "") -> Document:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def ray_service(*, active: Document | None = None, pending: Document | None = None, **status: Any) -> Document:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {**metadata("pycode-0c3a1", annotations={"plinth.dev/cluster-hash": "c1"}), "generation": 3},
        "spec": {"serveConfigV2": "applications: []\n"},
        "status": {
            "observedGeneration": 3,
            "numServeEndpoints": 1,
            "conditions": [{"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints", "message": "1 of 1"}],
            "activeServiceStatus": active or {},
            "pendingServiceStatus": pending or {},
            **status,
        },
    }


def application(
    status: str, message: str = "", *, deployments: Document | None = None, cluster: str = "c-1"
) -> Document:
    app = {"status": status, "message": message, "serveDeploymentStatuses": deployments or {}}
    return {"rayClusterName": cluster, "applicationStatuses": {"plinth": app}}


def waiting_pod(reason, message=None, role="worker", **more):
    return pod(role, phase="Pending", containers=[container(f"ray-{role}", state=waiting(reason, message))], **more)


def crashed(exit_code, reason="Error", message=None, role="worker", **more):
    ended = container(f"ray-{role}", state=terminated(exit_code, reason, message))
    return pod(role, containers=[ended], conditions=[], **more)


def record(reason, message):
    return json.dumps({"plinth": "failure", "reason": reason, "message": message})
