"""The images of the test node: a root of containerd, filled by a containerd that runs only for that.

An image comes as an OCI layout that lacks the layers which are here already, so that a change of code moves megabytes.
Layers are kept unpacked only; what the store has is written down beside it, so that asking starts no containerd.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.build import Assets
from cluster.oci_layout import Layers, image_layers, write_archive
from cluster.processes import Processes

READY_SECONDS = 60.0
NAMESPACE = "k8s.io"

CONFIG = """
version = 3
root = "{root}"
state = "{state}/state"
disabled_plugins = [
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.nri.v1.nri",
]

[grpc]
address = "{state}/containerd.sock"

[ttrpc]
address = "{state}/containerd.ttrpc.sock"
"""


class ImageStore:
    """A root of containerd."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._record = root / "plinth-images.json"

    def images(self) -> dict[str, Layers]:
        """What was imported: layers by the reference of their image."""
        return json.loads(self._record.read_text()) if self._record.exists() else {}

    def layers(self) -> Layers:
        """All layers that are here."""
        return {digest: size for layers in self.images().values() for digest, size in layers.items()}

    @contextmanager
    def running(self) -> Iterator["RunningStore"]:
        """The store with a containerd on it; nothing else may run on the same root."""
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="plinth-images-") as state:
            folder = Path(state)
            (folder / "config.toml").write_text(CONFIG.format(root=self.root, state=state))
            processes = Processes(folder)
            store = RunningStore(self, folder / "containerd.sock")
            command = [str(Assets().binary("containerd")), "--config", str(folder / "config.toml")]
            try:
                processes.start("containerd", command)
                processes.wait_until("containerd", store.is_ready, READY_SECONDS)
                store.remove_containers()
                yield store
                processes.stop("containerd")
            finally:
                processes.stop_all()

    def write_down(self, images: dict[str, Layers]) -> None:
        """Record what the store has."""
        new = self._record.with_suffix(".new")
        new.write_text(json.dumps(images, indent=1))
        new.replace(self._record)


class RunningStore:
    """What is done to a store while its containerd runs."""

    def __init__(self, store: ImageStore, socket: Path) -> None:
        self._store = store
        self._socket = socket

    def is_ready(self) -> bool:
        """Whether containerd answers."""
        return self._socket.exists() and self._ctr("version").returncode == 0

    def remove_containers(self) -> None:
        """Remove what a node that was killed has left: containers would keep the layers of their images."""
        for kind in ("containers", "sandboxes"):
            # A table; not every kind has a shorter form.
            left = [line.split()[0] for line in self._do(kind, "list").splitlines()[1:]]
            if left:
                self._do(kind, "remove", *left)

    def add(self, reference: str, layout: Path) -> None:
        """Import an image from an OCI layout, of which nothing is left afterwards."""
        layers = image_layers(layout)
        command = ["images", "import", "--local", "--discard-unpacked-layers", "-"]
        process = subprocess.Popen(
            self._command(*command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin as stream:
                write_archive(layout, reference, self._store.layers(), stream)
        except BrokenPipeError:
            # It has ended, and its output says why.
            pass
        output = process.stdout.read().decode(errors="replace")
        if process.wait() != 0:
            raise RuntimeError(f"{reference} could not be imported:\n{output}")
        self._store.write_down({**self._store.images(), reference: layers})
        self._collect_garbage()

    def remove(self, references: list[str]) -> None:
        """Remove images and the layers that no other image has."""
        if not references:
            return
        # Written down first: a layer that is promised and not there would be missing from the next archive.
        images = self._store.images()
        self._store.write_down({name: layers for name, layers in images.items() if name not in references})
        self._do("images", "rm", "--sync", *references)

    def _collect_garbage(self) -> None:
        """Remove the archive's form of layers now, not when containerd comes to it: the end of any lease will do."""
        lease = self._do("leases", "create").strip()
        self._do("leases", "delete", "--sync", lease)

    def _do(self, *arguments: str) -> str:
        answer = self._ctr(*arguments)
        if answer.returncode != 0:
            raise RuntimeError(f"ctr {' '.join(arguments)} failed:\n{answer.stdout}{answer.stderr}")
        return answer.stdout

    def _command(self, *arguments: str) -> list[str]:
        ctr = str(Assets().binary("ctr"))
        return [ctr, "--address", str(self._socket), "--namespace", NAMESPACE, *arguments]

    def _ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._command(*arguments), capture_output=True, text=True, check=False)
