"""A real node beside a real control plane: containerd, runc, kubelet, pod network, kube-proxy and cluster DNS.

Runs as root in the namespaces of `cluster.sandbox` and nowhere else. Images are those of `cluster.images`, imported
once and kept; what runs from them goes with the sandbox.
"""

import os
import subprocess
import urllib.error
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from cluster import node_programs
from cluster.build import CONTROL_PLANE, NODE, ensure_assets
from cluster.control_plane import ControlPlane
from cluster.image_store import ImageStore, RunningStore
from cluster.images import image, image_store, missing_images
from cluster.node_programs import NODE_NAME, NodeLayout
from cluster.processes import Processes
from cluster.programs import SERVICE_ADDRESSES
from cluster.sandbox import ADDRESS, CGROUP_VARIABLE, CGROUPS

START_SECONDS = 120.0
POD_SHARES = 4 * 1024
IMAGES = ("pause", "kuberay", "operator", "workloads")


class Node:
    """One node with its control plane, in a folder of its own; one a sandbox."""

    def __init__(self, folder: Path, *, images: Iterable[str] = IMAGES) -> None:
        """Say what can run on it."""
        cgroup = os.environ.get(CGROUP_VARIABLE)
        assert cgroup, "a node changes the machine: run this through `python -m cluster.e2e`"
        folder.mkdir(parents=True, exist_ok=True)
        self._images = tuple(images)
        self._cgroup = cgroup
        self._folder = folder
        self._processes = Processes(folder)
        self.plane = ControlPlane(folder / "control-plane", scheduler=True, address=ADDRESS)
        self._layout = NodeLayout(folder, image_store().root, self.plane.kubeconfig, cgroup)

    # ---- life

    def start(self) -> Self:
        """Start everything and wait until the node is ready and pods can be made."""
        assets = ensure_assets(CONTROL_PLANE + NODE)
        self._binary = assets.binary
        missing = missing_images(self._images, image_store())
        assert not missing, f"no image of {', '.join(missing)} is as this checkout wants it: have they been edited?"
        subprocess.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
        # Without a route to it, the API server would not send to a Service what kube-proxy is to send on.
        subprocess.run(["ip", "route", "add", SERVICE_ADDRESSES, "dev", "lo", "src", ADDRESS], check=True)
        for hierarchy in CGROUPS.iterdir():
            if (hierarchy / "cgroup.procs").exists():
                (hierarchy / self._cgroup).mkdir(exist_ok=True)
        weight = CGROUPS / "cpu" / self._cgroup / "cpu.shares"
        if weight.exists():
            # All pods together would weigh as much as one process beside them.
            weight.write_text(str(POD_SHARES))
        self._layout.write(runc=self._binary("runc"), pause=image("pause"))
        self.plane.start()
        try:
            self._start_containerd()
            self.start_kubelet()
            self._run("kube-proxy", f"--config={self._layout.proxy_config}")
            self._run("coredns", f"-conf={self._layout.corefile}")
            self.plane.apply(node_programs.dns_objects())
            self._processes.wait_until("kubelet", self._is_ready, START_SECONDS)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the programs; containers end with the sandbox."""
        self._processes.stop_all()
        self.plane.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, name: str, *arguments: str) -> None:
        self._processes.start(name, [str(self._binary(name)), *arguments])

    def _start_containerd(self) -> None:
        self._run("containerd", f"--config={self._layout.containerd_config}")
        store = RunningStore(ImageStore(self._layout.images), self._layout.socket)
        self._processes.wait_until("containerd", store.is_ready, START_SECONDS)
        # Of a node that ended with its sandbox; they ran nowhere else.
        store.remove_containers()

    def start_kubelet(self) -> None:
        """Start the kubelet; what runs on the node goes on running."""
        self._run("kubelet", *node_programs.kubelet(self._layout))

    def stop_kubelet(self) -> None:
        """End the kubelet; pods go on, and nobody looks after them."""
        self._processes.stop("kubelet")

    def _is_ready(self) -> bool:
        try:
            status = self.plane.request("GET", f"/api/v1/nodes/{NODE_NAME}")["status"]
        except urllib.error.URLError:
            return False
        return any(found["type"] == "Ready" and found["status"] == "True" for found in status.get("conditions", ()))

    def log(self, program: str) -> Path:
        """The log of a program of the node by the name of its binary."""
        return self._processes.log(program)
