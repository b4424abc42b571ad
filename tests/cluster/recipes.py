"""What each image of the test node is made of, and the reference that follows from that.

A reference has a hash of everything that goes into its image, so that whoever knows a checkout knows the references of
its images without having made them. Nothing is built here.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cluster.build import COMPONENTS

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path(__file__).resolve().parent / "dockerfiles"
DOMAIN = "plinth.test"

DISTRIBUTION = ("pyproject.toml", "constraints.txt", "constraints-vllm.txt", "README.md", "LICENSE")
SOURCES = ("operator/plinth_api", "operator/plinth_operator", "workloads/plinth_workloads")
"""What `.dockerignore` lets through."""

BASE_SUITE = "bookworm"
BASE_PACKAGES = ("python3", "python3-venv", "python3-pip", "libpython3-dev", "ca-certificates")


@dataclass(frozen=True)
class Recipe:
    """An image: its Dockerfile, and the context that this is built in."""

    name: str
    dockerfile: Path
    context: Path | None = None
    """A folder as it is; without one, a context is made of `files`."""

    files: dict[str, Path] = field(default_factory=dict)
    """By name in the context; for a folder as it is, those of it that count."""

    facts: tuple[str, ...] = ()
    """What the image depends on besides files."""

    on_base: bool = False
    stage: str = ""
    """The stage of the Dockerfile that comes before the last one."""

    @cached_property
    def reference(self) -> str:
        """`plinth.test/<name>:<hash of everything that goes in>`, as it was when this was first asked."""
        digest = hashlib.sha256(repr(self.facts).encode() + self.dockerfile.read_bytes())
        for name, path in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        if self.on_base:
            digest.update(base().reference.encode())
        return f"{DOMAIN}/{self.name}:{digest.hexdigest()[:16]}"

    @property
    def stage_reference(self) -> str:
        """What keeps the layers of the stage before the last one from being nobody's."""
        name, _, tag = self.reference.partition(":")
        return f"{name}-{self.stage}:{tag}"


def recipe(name: str) -> Recipe:
    """The recipe of one of `NAMES`."""
    return _RECIPES[name]()


def base() -> Recipe:
    """The stand-in for the Python image, of which both Dockerfiles are told by BASE_IMAGE."""
    return Recipe("base", RECIPES / "base.Dockerfile", facts=(BASE_SUITE, *BASE_PACKAGES))


def distribution(name: str, root: Path = ROOT) -> Recipe:
    """An image of the project, from its own Dockerfile in the folder of that name."""
    paths = [root / ".dockerignore", *(root / name for name in DISTRIBUTION), *source_files(root)]
    files = {str(path.relative_to(root)): path for path in paths}
    return Recipe(name, root / name / "Dockerfile", context=root, files=files, on_base=True, stage="build")


def source_files(root: Path = ROOT) -> Iterator[Path]:
    """The files of the packages, without what Python caches beside them."""
    for folder in SOURCES:
        for path in (root / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def _pause() -> Recipe:
    # Which busybox it is makes no difference, so that a reference is known before there is one.
    return Recipe("pause", RECIPES / "pause.Dockerfile", files={"pause.sh": RECIPES / "pause.sh"})


def _controller(name: str, binary: str) -> Recipe:
    (component,) = (component for component in COMPONENTS if binary in component.binaries)
    return Recipe(name, RECIPES / "binary.Dockerfile", facts=(component.folder.name, binary))


_RECIPES = {
    "pause": _pause,
    "kuberay": lambda: _controller("kuberay", "kuberay-operator"),
    "kueue": lambda: _controller("kueue", "kueue"),
    "operator": lambda: distribution("operator"),
    "workloads": lambda: distribution("workloads"),
}

NAMES = tuple(_RECIPES)
"""The least work first."""
