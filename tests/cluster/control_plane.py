"""A real Kubernetes control plane on this machine: etcd, API server, controllers, and on demand scheduler and KubeRay.

There are no nodes and no root is needed: pods stay Pending, while admission, CEL, server-side apply, RBAC, garbage
collection and watches are the real ones.
"""

import json
import re
import secrets
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property, partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

from cluster import programs
from cluster.build import Assets, ensure_assets
from cluster.kubeconfig import write_kubeconfig
from cluster.manifests import Objects, documents
from cluster.processes import POLL_SECONDS, ProcessDied, Processes

PLINTH_CRDS = Path(__file__).resolve().parents[2] / "crds"
ALL_CRDS = ("kuberay", "kueue", "plinth")
FIELD_MANAGER = "plinth-test"
START_SECONDS = 120.0
ATTEMPTS = 3
CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class ControlPlane:
    """One control plane in a folder of its own; several can run side by side."""

    def __init__(
        self,
        folder: Path,
        *,
        crds: Iterable[str] = ALL_CRDS,
        scheduler: bool = True,
        kuberay: bool = False,
        hurried: bool = True,
        address: str = programs.LOOPBACK,
    ) -> None:
        """Say what is in it.

        `hurried` KubeRay works on more at once than its defaults allow, and tests wait less. An `address` that is not
        loopback is one where pods of real nodes can reach the API server.
        """
        self._crds = tuple(crds)
        self._has_scheduler = scheduler
        self._has_kuberay = kuberay
        self._is_hurried = hurried
        self._address = address
        self._layout = programs.Layout(folder)
        self._processes = Processes(folder)
        self._ports = programs.free_ports()
        self._assets: Assets | None = None
        self.token = secrets.token_urlsafe(24)
        folder.mkdir(parents=True, exist_ok=True)

    # ---- life

    def start(self) -> Self:
        """Build what is missing, start everything and wait until it is ready."""
        self._assets = ensure_assets()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start_all()
            except ProcessDied as error:
                self.stop()
                # Somebody took one of the ports between the choice and the start.
                if "address already in use" not in str(error) or attempt == ATTEMPTS:
                    raise
                self._ports = programs.free_ports()
            except BaseException:
                self.stop()
                raise
            else:
                break
        return self

    def stop(self) -> None:
        """End everything; the folder stays."""
        self._processes.stop_all()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_all(self) -> None:
        self._layout.write_secrets(self.token)
        self._run("etcd", programs.etcd(self._layout, self._ports))
        self.start_api_server()
        write_kubeconfig(self.kubeconfig, self.url, self.token, certificate=self._layout.certificate)
        # Before the controllers: the garbage collector looks for new kinds only every 30 s.
        files = [path for name in self._crds for path in self._crd_files(name)]
        if files:
            self.install_crds(files)
        self._run(
            "kube-controller-manager",
            programs.controller_manager(self._layout, real_nodes=self._address != programs.LOOPBACK),
        )
        if self._has_scheduler:
            self._run("kube-scheduler", programs.scheduler(self._layout))
        if self._has_kuberay:
            self.start_kuberay()
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        self._processes.wait_until("kube-controller-manager", lambda: self._exists(path), START_SECONDS)
        self._processes.check_all()

    def _run(self, name: str, arguments: list[str]) -> None:
        assert self._assets is not None, "start() comes first"
        self._processes.start(name, [str(self._assets.binary(name)), *arguments])

    def start_api_server(self) -> None:
        """Start the API server, on the same port as before, and wait until it is ready."""
        self._run("kube-apiserver", programs.api_server(self._layout, self._ports, address=self._address))
        self._processes.wait_until("kube-apiserver", lambda: self._exists("/readyz"), START_SECONDS)

    def stop_api_server(self) -> None:
        """An outage: what is stored stays, every connection breaks."""
        self._processes.stop("kube-apiserver", gently=False)

    def start_kuberay(self) -> None:
        """Start the KubeRay operator; its CRDs have to be there."""
        self._run("kuberay-operator", programs.kuberay(self._layout, self._ports, hurried=self._is_hurried))
        probe = f"http://{programs.LOOPBACK}:{self._ports.kuberay_probe}/readyz"
        self._processes.wait_until("kuberay-operator", lambda: answers(probe), START_SECONDS)

    def stop_kuberay(self) -> None:
        """End the KubeRay operator; its objects stay."""
        self._processes.stop("kuberay-operator")

    # ---- access

    @property
    def url(self) -> str:
        """The API server."""
        return f"https://{self._address}:{self._ports.api}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self._layout.kubeconfig

    @property
    def certificate(self) -> Path:
        """What a client of `url` has to trust."""
        return self._layout.certificate

    @property
    def certificate_key(self) -> Path:
        """What a proxy needs to be taken for the API server."""
        return self._layout.certificate_key

    def kubectl(self) -> Path:
        """The command, for people and for what has no shorter way."""
        assert self._assets is not None, "start() comes first"
        return self._assets.binary("kubectl")

    def log(self, program: str) -> Path:
        """The log of a program by the name of its binary."""
        return self._processes.log(program)

    def pids(self) -> dict[str, int]:
        """The process ids of what runs, by the name of its binary."""
        return self._processes.pids()

    def kubeconfig_for_service_account(self, namespace: str, name: str) -> Path:
        """Write a kubeconfig with a token of a service account, valid for one hour."""
        path = self._layout.folder / f"{namespace}-{name}.kubeconfig"
        return write_kubeconfig(
            path,
            self.url,
            self.service_account_token(namespace, name),
            certificate=self._layout.certificate,
            namespace=namespace,
        )

    def service_account_token(self, namespace: str, name: str) -> str:
        """A token from the TokenRequest API."""
        spec = {"expirationSeconds": 3600}
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        token: str = self.request("POST", path, json.dumps(request).encode())["status"]["token"]
        return token

    @cached_property
    def client(self) -> Any:
        """A dynamic client of the kubernetes package with the administrator's rights."""
        # Here and not above: the import takes a second, which tests that do not need it should not wait for.
        from kubernetes import config
        from kubernetes.dynamic import DynamicClient

        api = config.new_client_from_config(str(self.kubeconfig))
        # The client's own place for it is named after the address only, which the next cluster may have.
        return DynamicClient(api, cache_file=str(self._layout.folder / "discovery.json"))

    def resource(self, api_version: str, kind: str) -> Any:
        """The dynamic client's handle of a kind: `.get`, `.create`, `.patch`, `.delete`, `.watch`."""
        return self.client.resources.get(api_version=api_version, kind=kind)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str = "application/json",
        *,
        accept: str = "application/json",
    ) -> dict[str, Any]:
        """One request with the administrator's rights; `urllib.error.HTTPError` when it is refused."""
        request = urllib.request.Request(self.url + path, body, method=method)
        request.add_header("Authorization", f"Bearer {self.token}")
        request.add_header("Content-Type", content_type)
        request.add_header("Accept", accept)
        trust = ssl.create_default_context(cafile=str(self._layout.certificate))
        with urllib.request.urlopen(request, timeout=60, context=trust) as answer:
            content = answer.read()
        is_json = answer.headers.get_content_type() == "application/json"
        found: dict[str, Any] = json.loads(content) if is_json else {"text": content.decode()}
        return found

    def _exists(self, path: str) -> bool:
        try:
            self.request("GET", path)
        except (urllib.error.URLError, OSError):
            return False
        return True

    # ---- objects

    def apply(self, source: Objects, namespace: str | None = None) -> list[Any]:
        """Apply a YAML file, a folder of them, one document or several on the server's side; what came out of it."""
        applied = []
        for document in documents(source):
            resource = self.resource(document["apiVersion"], document["kind"])
            target = document["metadata"].get("namespace") or namespace or "default"
            applied.append(
                self.client.server_side_apply(
                    resource,
                    body=document,
                    name=document["metadata"]["name"],
                    namespace=target if resource.namespaced else None,
                    field_manager=FIELD_MANAGER,
                    force_conflicts=True,
                )
            )
        return applied

    def create_namespace(self, name: str | None = None) -> str:
        """A namespace that pods can be created in; without a name, one that nobody has."""
        name = name or f"test-{secrets.token_hex(4)}"
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        self.request("POST", "/api/v1/namespaces", json.dumps(body).encode())
        # Admission refuses pods of a service account that is not there yet.
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        wait_until(lambda: self._exists(account), 30, f"the service account of {name}")
        return name

    def delete_namespace(self, name: str) -> None:
        """Delete a namespace without waiting for what is in it."""
        with suppress(urllib.error.HTTPError):
            self.request("DELETE", f"/api/v1/namespaces/{name}")

    def add_node(self, name: str, *, cpu: str = "8", memory: str = "32Gi", gpus: int = 0) -> None:
        """A node on paper: the scheduler places pods there, and nobody runs them."""
        size = {"cpu": cpu, "memory": memory, "pods": "110", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "on paper"}
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        }
        self.request("POST", "/api/v1/nodes", json.dumps(body).encode())
        status = {"capacity": size, "allocatable": size, "conditions": [ready]}
        merge = "application/merge-patch+json"
        self.request("PATCH", f"/api/v1/nodes/{name}/status", json.dumps({"status": status}).encode(), merge)
        # Admission taints every new node as not ready, and the controller that would lift it is off.
        self.request("PATCH", f"/api/v1/nodes/{name}", json.dumps({"spec": {"taints": None}}).encode(), merge)

    def remove_node(self, name: str) -> None:
        """Delete a node; the pods on it go too."""
        self.request("DELETE", f"/api/v1/nodes/{name}")

    # ---- kinds

    def _crd_files(self, component: str) -> list[Path]:
        assert self._assets is not None, "start() comes first"
        return sorted(PLINTH_CRDS.glob("*.yaml")) if component == "plinth" else self._assets.crds(component)

    def install_kuberay_crds(self) -> None:
        """RayCluster, RayJob, RayService."""
        self.install_crds(self._crd_files("kuberay"))

    def install_kueue_crds(self) -> None:
        """ClusterQueue, LocalQueue, Workload and the rest, without anything that acts on them."""
        self.install_crds(self._crd_files("kueue"))

    def install_plinth_crds(self) -> None:
        """PretrainJob, FineTuneJob, ModelService, of this checkout."""
        self.install_crds(self._crd_files("plinth"))

    def remove_kuberay_crds(self) -> None:
        """As on a cluster without KubeRay; every object of its kinds goes too."""
        paths = [f"{CRD_PATH}/{crd_name(path)}" for path in self._crd_files("kuberay")]
        for path in paths:
            with suppress(urllib.error.HTTPError):
                self.request("DELETE", path)
        wait_until(lambda: not any(map(self._exists, paths)), 60, "the end of KubeRay's CRDs")

    def install_crds(self, files: list[Path]) -> None:
        """Apply CRDs, and wait until their objects can be created."""
        assert files, "no CRDs there"
        for path in files:
            self._apply_crd(path)
        for path in files:
            name = crd_name(path)
            wait_until(partial(self._is_served, name), 60, f"{name} to be established")

    def _apply_crd(self, path: Path) -> None:
        # As it is: parsing a megabyte of YAML in Python takes longer than all the rest.
        target = f"{CRD_PATH}/{crd_name(path)}?fieldManager={FIELD_MANAGER}&force=true"
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self.request("PATCH", target, path.read_bytes(), "application/apply-patch+yaml")
            except urllib.error.HTTPError as error:
                # A server that has just started does not always answer a megabyte in time where much else runs.
                if error.code != HTTPStatus.GATEWAY_TIMEOUT or attempt == ATTEMPTS:
                    raise
            else:
                return

    def _is_served(self, name: str) -> bool:
        # By discovery, which lists what is established: KubeRay's CRDs themselves are a megabyte to poll.
        plural, _, group = name.partition(".")
        try:
            version = self.request("GET", f"/apis/{group}")["preferredVersion"]["groupVersion"]
            resources = self.request("GET", f"/apis/{version}")["resources"]
        except urllib.error.HTTPError:
            return False
        return any(entry["name"] == plural for entry in resources)


def crd_name(path: Path) -> str:
    """The name in a file of one CustomResourceDefinition."""
    found = re.search(r"^  name: (\S+)$", path.read_text(), re.MULTILINE)
    assert found, f"{path} has no name"
    return found.group(1)


def answers(url: str) -> bool:
    """Whether a plain http address answers with success."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for a condition and return what made it true; `TimeoutError` names what was waited for."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(POLL_SECONDS)
    return found
