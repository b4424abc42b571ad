"""The images of the test node, made where they are missing: names enter, a root of containerd that has them leaves.

`PYTHONPATH=tests python -m cluster.images [name ...]` makes them and prints their references. It takes root, Debian's
packages (`cluster.packages`) and containerd (`cluster.build`); with a warm cache it takes milliseconds.
"""

import fcntl
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from cluster.build import COMPONENTS as ALL
from cluster.build import cache_folder, ensure_assets, locked, tell
from cluster.image_builds import Builds
from cluster.image_store import ImageStore, RunningStore
from cluster.oci_layout import prepare_layout
from cluster.packages import ensure_packages
from cluster.recipes import DOMAIN, NAMES, Recipe, recipe

PACKAGES = ("buildah", "busybox-static", "debootstrap", "skopeo")
COMPONENTS = {"kuberay": "kuberay", "kueue": "kueue-controller"}
"""Whose binary is an image."""


def image(name: str) -> str:
    """The reference of an image: `plinth.test/<name>:<hash of everything that goes in>`."""
    return first_recipe(name).reference


@cache
def first_recipe(name: str) -> Recipe:
    """The recipe as this process first asked for it: sources that change while it runs do not change its images."""
    return recipe(name)


def node_folder() -> Path:
    """Where images and what builds them are kept between runs; about 15 GB with all of them."""
    return cache_folder().parent / "node"


def images_lock() -> Path:
    """Held by whoever runs a containerd on the images: one at a time, be it to fill them or as the node."""
    folder = node_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "lock"


def ensure_images(names: Iterable[str] = NAMES) -> Path:
    """Make what is missing, remove what older checkouts have left of the same images; the root of containerd.

    Not to be called by a process that holds `images_lock`: it would wait for itself.
    """
    wanted, store = tuple(names), image_store()
    if missing_images(wanted, store):
        with held_images(wanted):
            pass
    return store.root


@contextmanager
def held_images(names: Iterable[str]) -> Iterator[None]:
    """Make what is missing, and let nobody else change the images meanwhile."""
    store = image_store()
    if is_held(images_lock()):
        tell("waiting for who uses the images now: a node, or another process that makes them")
    with locked(images_lock()):
        make_images(missing_images(names, store), store)
        yield


def image_store() -> ImageStore:
    """Where the images are."""
    return ImageStore(node_folder() / "containerd")


def is_held(lock: Path) -> bool:
    """Whether somebody holds a lock at this moment."""
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def missing_images(names: Iterable[str], store: ImageStore) -> list[str]:
    """Those that the store does not have as this checkout wants them."""
    here = store.images()
    return [name for name in names if image(name) not in here]


def make_images(names: list[str], store: ImageStore) -> None:
    """Build images and import them, one after the other: the disk has to hold one archive at a time."""
    if not names:
        return
    ensure_packages(PACKAGES)
    needed = {"containerd", *(COMPONENTS[name] for name in names if name in COMPONENTS)}
    ensure_assets(tuple(component for component in ALL if component.name in needed))
    builds = Builds(node_folder() / "buildah")
    with store.running() as running:
        for name in names:
            make_image(name, store, running, builds)


def make_image(name: str, store: ImageStore, running: RunningStore, builds: Builds) -> None:
    """Build one image, import it, and remove its older forms."""
    made = first_recipe(name)
    builds.build(made)
    with tempfile.TemporaryDirectory(dir=node_folder(), prefix=".layout-") as folder:
        layout = Path(folder) / "layout"
        prepare_layout(layout, store.layers())
        builds.push(made.reference, layout)
        tell(f"importing {made.reference}")
        running.add(made.reference, layout)
    older = [it for it in store.images() if it.startswith(f"{DOMAIN}/{name}:") and it != made.reference]
    running.remove(older)
    builds.remove_older(made)


if __name__ == "__main__":
    ensure_images(sys.argv[1:] or NAMES)
    sys.stdout.writelines(f"{image(name)}\n" for name in sys.argv[1:] or NAMES)
