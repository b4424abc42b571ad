"""Building images with buildah: a recipe enters, an image in a storage of our own and then an OCI layout leave.

The storage keeps the layers of the last build, so that a change of code builds on the layer with torch. It lies beside
the node's images, not in /var/lib/containers, and needs neither a daemon nor a registry.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from cluster.build import Assets, tail, tell, wait_for_end
from cluster.recipes import BASE_PACKAGES, BASE_SUITE, Recipe, base

PROGRESS_SECONDS = 15
BUSYBOX = Path("/bin/busybox")
CERTIFICATES = Path("/etc/ssl/certs")
PIP_CONFIG = Path("/etc/pip.conf")
STORAGE_OPTION = "overlay.skip_mount_home=true"
"""Without it the storage stays mounted on itself, and `rm` cannot remove the cache."""

MACHINE_VARIABLES = ("PIP_INDEX_URL",)
"""Build arguments of the Dockerfiles that this machine may set for its own installations as well."""


class Builds:
    """A storage of buildah in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._storage = folder / "storage"
        self._temporary = folder / "temporary"

    def build(self, recipe: Recipe) -> None:
        """Make an image, and its base where that is missing; `RuntimeError` with the end of the log where it fails."""
        # Of a process that was killed: whoever is alive and builds holds the lock.
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        if recipe.on_base and not self.has(base().reference):
            self._build_base()
        if recipe.context is not None:
            self._bud(recipe, recipe.context)
            return
        with tempfile.TemporaryDirectory(dir=self._temporary) as made:
            context = Path(made)
            for name, path in {**recipe.files, **binary_files(recipe)}.items():
                shutil.copy(path, context / name)
            self._bud(recipe, context)

    def push(self, reference: str, layout: Path) -> None:
        """Write an image to an OCI layout, uncompressed; layers that the layout has are not written again."""
        storage = f"containers-storage:[overlay@{self._storage}+{self._folder / 'run'}:{STORAGE_OPTION}]{reference}"
        # Not `buildah push`: it compresses what it writes to a layout, whatever it is told.
        command = ["skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers", storage, f"oci:{layout}:image"]
        run_logged(command, self._folder / "push.log", f"writing {reference}", self._environment())

    def has(self, reference: str) -> bool:
        """Whether an image is in the storage."""
        return self._answer("images", "--quiet", "--filter", f"reference={reference}") != ""

    def remove_older(self, recipe: Recipe) -> None:
        """Remove what the recipe gave before it changed, and the layers that nothing builds on."""
        kept = {recipe.reference, recipe.stage_reference}
        families = tuple(reference.partition(":")[0] + ":" for reference in kept)
        listed = self._answer("images", "--format", "{{.Name}}:{{.Tag}}").split()
        older = [it for it in listed if it.startswith(families) and it not in kept]
        if older:
            # A build that was killed has left containers, which would keep them.
            self._answer("rmi", "--force", *older)

    def _build_base(self) -> None:
        recipe = base()
        with tempfile.TemporaryDirectory(dir=self._temporary) as made:
            root, context = Path(made) / "root", Path(made) / "context"
            context.mkdir()
            include = f"--include={','.join(BASE_PACKAGES)}"
            # In a mount namespace of its own: the /proc that it mounts must not outlive it in a folder to be removed.
            command = ["unshare", "--mount", "debootstrap", "--variant=minbase", include, BASE_SUITE, str(root)]
            run_logged(command, self._folder / "build-base.log", f"making {recipe.reference} by debootstrap")
            for cache in (root / "var/cache/apt/archives", root / "var/lib/apt/lists"):
                shutil.rmtree(cache)
            archive = ["tar", "-C", str(root), "--one-file-system", "-cf", str(context / "rootfs.tar"), "."]
            subprocess.run(archive, check=True)
            shutil.rmtree(root)
            self._bud(recipe, context)
        # Images that were built on an older one keep its layers.
        self.remove_older(recipe)

    def _bud(self, recipe: Recipe, context: Path) -> None:
        arguments = ["bud", "--layers", "--pull-never", "--network", "host", *machine_options()]
        if recipe.on_base:
            arguments += ["--build-arg", f"BASE_IMAGE={base().reference}"]
        arguments += ["--file", str(recipe.dockerfile)]
        if recipe.stage:
            stage = ["--target", recipe.stage, "--tag", recipe.stage_reference]
            self._run(
                [*arguments, *stage, str(context)],
                f"build-{recipe.name}-{recipe.stage}",
                f"preparing {recipe.reference}",
            )
        arguments += ["--tag", recipe.reference, str(context)]
        self._run(arguments, f"build-{recipe.name}", f"building {recipe.reference}")

    def _run(self, arguments: list[str], log: str, what: str) -> None:
        run_logged([*self._command(), *arguments], self._folder / f"{log}.log", what, self._environment())

    def _answer(self, *arguments: str) -> str:
        command = [*self._command(), *arguments]
        answer = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{answer.stderr}")
        return answer.stdout.strip()

    def _command(self) -> list[str]:
        folders = ["--root", str(self._storage), "--runroot", str(self._folder / "run")]
        return ["buildah", *folders, "--storage-driver", "overlay", "--storage-opt", STORAGE_OPTION]

    def _environment(self) -> dict[str, str]:
        # Without a runtime of containers, which this machine need not have; and blobs beside the storage, not in /var.
        return {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self._temporary)}


def binary_files(recipe: Recipe) -> dict[str, Path]:
    """What a recipe takes from this machine, by name in its context."""
    if recipe.name == "pause":
        return {"busybox": BUSYBOX}
    return {"manager": Assets().binary(recipe.facts[1])} if len(recipe.facts) > 1 else {}


def machine_options(environment: Mapping[str, str] = os.environ) -> list[str]:
    """How this machine reaches a package index: its certificates and its settings for pip, in no layer of an image."""
    mounts = [path for path in (CERTIFICATES, PIP_CONFIG) if path.exists()]
    settings = [f"{name}={environment[name]}" for name in MACHINE_VARIABLES if environment.get(name)]
    return [
        *(word for path in mounts for word in ("--volume", f"{path}:{path}:ro")),
        *(word for setting in settings for word in ("--build-arg", setting)),
    ]


def run_logged(command: list[str], log_path: Path, what: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a command that takes long, telling now and then that it is at it; `RuntimeError` has the end of its log."""
    started = time.monotonic()
    tell(what)
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for_end(process, PROGRESS_SECONDS)
            while process.poll() is None:
                tell(f"{what}: {time.monotonic() - started:.0f} s")
                wait_for_end(process, PROGRESS_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"{what} failed. The end of {log_path}:\n{tail(log_path)}")
