"""`python -m cluster.record_kuberay FOLDER`: what the real KubeRay writes into the status of its objects, as JSON.

KubeRay runs on a control plane without nodes. This file plays the kubelet (pods run and end by a patch of their
status) and Ray's dashboard (a proxy between KubeRay and the API server answers for it), so that KubeRay goes through
every stage of a job and a service. Each state that it writes is kept once, cut to what is read.
"""

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from cluster import programs
from cluster.build import MODULES, ensure_assets, tell
from cluster.control_plane import ALL_CRDS, ControlPlane, answers, wait_until
from cluster.faulty_proxy import FaultyProxy
from cluster.kubeconfig import write_kubeconfig
from cluster.processes import Processes
from rendering import children_of, make

Document = dict[str, Any]
Shapes = dict[tuple[str, str], Document]
"""By kind and name: the story that had it first, and KubeRay's own words."""

KINDS = {"RayJob": "rayjobs", "RayCluster": "rayclusters", "RayService": "rayservices"}
MERGE = "application/merge-patch+json"
PROXIED = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/(?:services|pods)/[^/]+/proxy(?P<path>/[^?]*)")
GRACE_SECONDS = 6
NODE = "paper"
SECONDS = 45
DRIVER = "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\n"
METADATA = ("name", "generation", "deletionTimestamp", "ownerReferences", "labels", "annotations", "uid")
NOT_READ = re.compile(
    "rayClusterStatus|lastUpdate.*|stateTransition.*|endpoints|head|(max|min)Worker.*|.*U|.*Memory|.*URL"
)


class Dashboards(FaultyProxy):
    """The API server, but requests for something that runs in a pod are answered here, by namespace."""

    jobs: dict[str, Document | None]
    """What Ray says of the job; None where it knows none. A namespace that is missing has no dashboard."""
    applications: dict[str, Document]
    healthy: set[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.jobs, self.applications, self.healthy = {}, {}, set()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        found = PROXIED.fullmatch(request.path)
        if found is None:
            return await super()._handle(request)
        namespace, path = found["namespace"], found["path"]
        if path.startswith("/api/jobs/") and namespace in self.jobs:
            job = self.jobs[namespace]
            return web.json_response(job) if job is not None else web.Response(status=404)
        if path.startswith("/api/serve/applications/") and namespace in self.applications:
            return web.json_response({"applications": self.applications[namespace]})
        return web.Response(status=200 if namespace in self.healthy else 503)


class Stage:
    """One namespace in which KubeRay goes through one story, and what it wrote there."""

    def __init__(self, plane: ControlPlane, dashboards: Dashboards, story: str, shapes: Shapes, seen: set[str]) -> None:
        self._plane, self._dashboards, self._story, self._shapes = plane, dashboards, story, shapes
        self._seen = seen
        self.namespace = plane.create_namespace()
        self._ended = threading.Event()
        self._watchers = [threading.Thread(target=self._watch, args=(kind,), daemon=True) for kind in KINDS]
        for watcher in self._watchers:
            watcher.start()

    def close(self) -> None:
        """End the story; what it left behind goes with the control plane."""
        self._ended.set()
        for watcher in self._watchers:
            watcher.join(10)

    # ---- recording

    def _watch(self, kind: str) -> None:
        resource = self._plane.resource("ray.io/v1", kind)
        while not self._ended.is_set():
            for event in resource.watch(namespace=self.namespace, timeout=2):
                self._keep(event["raw_object"])

    def _keep(self, manifest: Document) -> None:
        shape = trimmed(manifest)
        words = state_words(shape)
        messages = [shape["status"].get("message", "")]
        messages += [condition["message"] for condition in shape["status"].get("conditions", ())]
        told = json.dumps([shape["kind"], words, [re.findall("[A-Za-z]+", message)[:5] for message in messages]])
        if told not in self._seen:
            self._seen.add(told)
            name = f"{self._story}: {' '.join(word for word in words if word) or 'nothing yet'}"
            self._shapes.setdefault((shape["kind"], name), shape)

    # ---- KubeRay's objects

    def path(self, plural: str, name: str = "", *, group: str = "ray.io/v1") -> str:
        """The path of a kind, or of one object."""
        base = f"/apis/{group}" if group else "/api/v1"
        return f"{base}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def items(self, plural: str, *, group: str = "ray.io/v1") -> list[Document]:
        """Every object of a kind."""
        found: list[Document] = self._plane.request("GET", self.path(plural, group=group))["items"]
        return found

    def create(
        self, kind: str, change: Callable[[Document], None] = lambda spec: None, annotations: Document | None = None
    ) -> None:
        """One of our own children of this kind, with a change to its spec; nobody owns it here."""
        resource = make("ModelService" if kind == "RayService" else "PretrainJob", compute={})
        manifest = children_of(resource)[kind]
        metadata = {**manifest["metadata"], "namespace": self.namespace, "ownerReferences": []}
        metadata["annotations"] = {**metadata["annotations"], **(annotations or {})}
        manifest = {**manifest, "metadata": metadata, "spec": json.loads(json.dumps(manifest["spec"]))}
        change(manifest["spec"])
        self._plane.request("POST", self.path(KINDS[kind]), json.dumps(manifest).encode())

    def patch(self, plural: str, body: Document, *, group: str = "ray.io/v1", name: str = "", part: str = "") -> None:
        """Merge into the only object of a kind, or into the one of this name."""
        name = name or self.items(plural, group=group)[0]["metadata"]["name"]
        self._plane.request("PATCH", self.path(plural, name, group=group) + part, json.dumps(body).encode(), MERGE)

    def delete(self, plural: str, name: str, *, group: str = "ray.io/v1") -> None:
        """Delete one object."""
        self._plane.request("DELETE", self.path(plural, name, group=group))

    def forbid_pods(self, most: int) -> None:
        """A ResourceQuota."""
        quota = {"kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": str(most)}}}
        self._plane.apply({"apiVersion": "v1", **quota}, self.namespace)
        wait_until(lambda: self.items("resourcequotas", group="")[0].get("status", {}).get("hard"), SECONDS, "quota")

    # ---- what is played

    def pods(self, role: str) -> list[Document]:
        """Pods by KubeRay's node type; `submitter` for those of its Jobs."""
        labels = [pod["metadata"].get("labels", {}) for pod in self.items("pods", group="")]
        found = zip(self.items("pods", group=""), labels, strict=False)
        return [pod for pod, label in found if label.get("ray.io/node-type", "submitter") == role]

    def wait_pods(self, role: str, number: int = 1) -> list[Document]:
        """The pods of a role, once there are so many."""
        return list(wait_until(lambda: len(self.pods(role)) >= number and self.pods(role), SECONDS, f"{role} pods"))

    def set_pods(self, role: str, phase: str, state: Document, *, ready: bool = False, reason: str = "") -> None:
        """What a kubelet would say of all pods of a role."""
        for pod in self.wait_pods(role):
            containers = [
                {"name": c["name"], "image": c["image"], "imageID": "", "ready": ready, "restartCount": 0}
                for c in pod["spec"]["containers"]
            ]
            condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": now()}
            status = {
                "phase": phase,
                "podIP": "10.244.0.9",
                "podIPs": [{"ip": "10.244.0.9"}],
                "conditions": [{**condition, **({"reason": reason} if reason else {})}],
                "containerStatuses": [{**entry, "state": state} for entry in containers],
            }
            self.patch("pods", {"status": status}, group="", name=pod["metadata"]["name"], part="/status")

    def run_pods(self, *roles: str) -> None:
        """They run and are ready."""
        for role in roles:
            self.set_pods(role, "Running", {"running": {"startedAt": now()}}, ready=True)

    def place_pods(self) -> None:
        """Bind what is not bound: only pods on a node become endpoints. Nobody ends them there."""
        for pod in self.items("pods", group=""):
            if not pod["spec"].get("nodeName"):
                target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
                binding = {"metadata": {"name": pod["metadata"]["name"]}, "target": target}
                path = self.path("pods", pod["metadata"]["name"], group="") + "/binding"
                self._plane.request("POST", path, json.dumps({"kind": "Binding", **binding}).encode())

    def end_submitter(self, exit_code: int) -> None:
        """KubeRay's submitter ends."""
        ended = {"exitCode": exit_code, "reason": "Error" if exit_code else "Completed", "finishedAt": now()}
        self.set_pods("submitter", "Failed" if exit_code else "Succeeded", {"terminated": ended})

    def ray_says(self, status: str | None, message: str = "") -> None:
        """The state of the job on Ray's dashboard; None where it knows no job."""
        times = {"start_time": int(time.time() * 1000)}
        if status in ("SUCCEEDED", "FAILED", "STOPPED"):
            times["end_time"] = times["start_time"]
        answer = {"job_id": "02000000", "submission_id": "tiny", "status": status, "message": message, **times}
        self._dashboards.jobs[self.namespace] = answer if status is not None else None

    def serve_says(self, status: str, message: str = "", deployment: str = "HEALTHY", words: str = "") -> None:
        """The state of the application on Ray's dashboard."""
        deployments = {"Model": {"name": "Model", "status": deployment, "message": words}}
        application = {"name": "plinth", "status": status, "message": message, "deployments": deployments}
        self._dashboards.applications[self.namespace] = {"plinth": application}

    def proxy_is_healthy(self) -> None:
        """Ray Serve's proxy on the head answers."""
        self._dashboards.healthy.add(self.namespace)

    # ---- waiting

    def wait_job(self, deployment: str, job: str | None = None) -> None:
        """Wait until the RayJob is so far."""

        def reached() -> bool:
            status = self.items("rayjobs")[0].get("status", {})
            return status.get("jobDeploymentStatus", "") == deployment and job in (None, status.get("jobStatus", ""))

        wait_until(reached, SECONDS, f"{self._story}: {deployment} {job}")

    def wait_words(self, plural: str, *words: str) -> None:
        """Wait until the words for the state of an object of a kind have these."""

        def told() -> list[str]:
            return [" ".join(state_words(item)) for item in self.items(plural)]

        def reached() -> bool:
            return any(all(word in text for word in words) for text in told())

        try:
            wait_until(reached, SECONDS, f"{self._story}: {words}")
        except TimeoutError as error:
            raise AssertionError(f"{error}; it is {told()}") from error

    def wait_gone(self, plural: str) -> None:
        """Wait until there is no object of a kind."""
        wait_until(lambda: not self.items(plural), SECONDS, f"{self._story}: the end of {plural}")


Story = Callable[[Stage], None]


def now() -> str:
    """As Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def state_words(manifest: Document) -> list[str]:
    """The state of an object in the words that KubeRay has for it."""
    status, metadata = manifest.get("status", {}), manifest["metadata"]
    words = [status.get("jobDeploymentStatus", ""), status.get("jobStatus", ""), status.get("reason", "")]
    words.append(status.get("state", ""))
    for condition in status.get("conditions", ()):
        if condition["type"] not in ("RayClusterSuspended", "RayClusterSuspending") or condition["status"] == "True":
            words.append(f"{condition['type']}={condition['status']}/{condition['reason']}")
    for place in ("activeServiceStatus", "pendingServiceStatus"):
        for application in (status.get(place, {}).get("applicationStatuses") or {}).values():
            words.append(f"{place.removesuffix('ServiceStatus')}={application.get('status', '')}")
    words.append("deleting" if metadata.get("deletionTimestamp") else "")
    return words


def trimmed(manifest: Document) -> Document:
    """The object without what nobody reads."""
    metadata = {key: manifest["metadata"][key] for key in METADATA if manifest["metadata"].get(key)}
    owners = metadata.get("ownerReferences", ())
    metadata["ownerReferences"] = [{key: owner[key] for key in ("kind", "name")} for owner in owners]
    spec = {key: manifest["spec"][key] for key in ("suspend", "serveConfigV2") if key in manifest["spec"]}
    status = {key: value for key, value in manifest.get("status", {}).items() if not NOT_READ.fullmatch(key)}
    for place in ("activeServiceStatus", "pendingServiceStatus"):
        if place in status:
            status[place] = {key: value for key, value in status[place].items() if not NOT_READ.fullmatch(key)}
    metadata |= {"namespace": "team-a", "resourceVersion": manifest["metadata"]["resourceVersion"]}
    return {"apiVersion": "ray.io/v1", "kind": manifest["kind"], "metadata": metadata, "spec": spec, "status": status}


@contextmanager
def playing(folder: Path) -> Iterator[tuple[ControlPlane, Dashboards]]:
    """A control plane whose KubeRay believes that pods run; everything is kept in a folder."""
    with ExitStack() as stack:
        plane = stack.enter_context(ControlPlane(folder / "plane", crds=ALL_CRDS, scheduler=False))
        plane.add_node(NODE)
        dashboards = stack.enter_context(Dashboards(plane.url, plane.certificate, plane.certificate_key))
        start_kuberay(stack, folder / "kuberay", plane, dashboards)
        yield plane, dashboards


def record(stories: Mapping[str, Story], plane: ControlPlane, dashboards: Dashboards) -> Shapes:
    """Tell these stories, one after the other."""
    shapes: Shapes = {}
    seen: set[str] = set()
    for name, story in stories.items():
        tell(name)
        stage = Stage(plane, dashboards, name, shapes, seen)
        try:
            story(stage)
        finally:
            stage.close()
    return shapes


def main() -> None:
    """Tell every story, and write one file a kind."""
    from cluster.kuberay_stories import STORIES

    parser = argparse.ArgumentParser(prog="python -m cluster.record_kuberay", description="Records KubeRay's status.")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plinth-record-") as folder, playing(Path(folder)) as (plane, dashboards):
        shapes = record(STORIES, plane, dashboards)
    version = re.search(r"ray-operator (v[\d.]+)", (MODULES / "kuberay" / "go.mod").read_text())
    assert version
    for kind in KINDS:
        of_kind = {name: shape for (of, name), shape in shapes.items() if of == kind}
        content = {"recordedFrom": f"KubeRay {version[1]}", "shapes": of_kind}
        (options.folder / f"{kind.lower()}.json").write_text(json.dumps(content, indent=1) + "\n")
        sys.stdout.writelines(f"{kind}: {name}\n" for name in of_kind)


def start_kuberay(stack: ExitStack, folder: Path, plane: ControlPlane, dashboards: Dashboards) -> None:
    """KubeRay behind the proxy, with a shorter patience than it has by itself."""
    folder.mkdir()
    layout, ports = programs.Layout(folder), programs.free_ports()
    write_kubeconfig(layout.kubeconfig, dashboards.url, plane.token, certificate=plane.certificate)
    processes = Processes(folder)
    stack.callback(processes.stop_all)
    command = [str(ensure_assets().binary("kuberay-operator")), *programs.kuberay(layout, ports, hurried=True)]
    patience = {"RAYJOB_DEPLOYMENT_STATUS_TRANSITION_GRACE_PERIOD_SECONDS": str(GRACE_SECONDS)}
    processes.start("kuberay-operator", command, patience)
    probe = f"http://{programs.LOOPBACK}:{ports.kuberay_probe}/readyz"
    processes.wait_until("kuberay-operator", lambda: answers(probe), SECONDS)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
