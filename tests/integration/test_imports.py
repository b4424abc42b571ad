"""What must import where little is installed: the API beside pydantic alone, the training loop without Ray and MLflow.

Each import runs in an interpreter that sees a folder of links to this environment's packages, less those left out.
"""

import ast
import importlib.metadata
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (ROOT / "operator", ROOT / "workloads")
CLUSTER = ("kopf", "kubernetes")
WITH_THE_LOOP = [
    "plinth_workloads.train.loop",
    "plinth_workloads.train.reporting",
    "plinth_workloads.objectives.causal_lm",
    "plinth_workloads.tracking",
]
NOT_FOR_THE_LOOP = ("ray", "mlflow", "datasets", "peft", "matplotlib", *CLUSTER)
NOT_FOR_THE_API = ("torch", "ray", "mlflow", "transformers", "datasets", "numpy", *CLUSTER)


def modules_of(package: str) -> list[str]:
    """Every module of one of our packages."""
    folder = next(source / package for source in SOURCES if (source / package).is_dir())
    paths = sorted(folder.rglob("*.py"))
    names = [".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def environment_without(folder: Path, excluded: tuple[str, ...]) -> Path:
    """Links to what is installed here, less the entries that the excluded distributions brought.

    A .pth file is not linked: an editable install would bring its packages back.
    """
    taken = {*excluded, *(entry for package in excluded for entry in entries_of(package))}
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            if (
                entry.name not in taken
                and entry.suffix not in (".pth", ".dist-info")
                and "__editable__" not in entry.name
            ):
                (folder / entry.name).symlink_to(entry)
    return folder


@cache
def owners() -> Mapping[str, list[str]]:
    """The distributions that brought each top-level name; every file of theirs is looked at."""
    return importlib.metadata.packages_distributions()


def entries_of(package: str) -> set[str]:
    """The top-level names that only the distributions of an importable package brought."""
    names = set(owners().get(package, ()))
    return {entry for entry, distributions in owners().items() if set(distributions) <= names}


def run_clean(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with the standard library, `site` and our sources on the path, and nothing else."""
    paths = [str(site), *map(str, SOURCES)]
    # -I: no environment variables, no user's packages, no current folder. -S: no site, so no .pth files either.
    command = [sys.executable, "-I", "-S", "-c", f"import sys\nsys.path += {paths!r}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def importing(modules: list[str], excluded: tuple[str, ...]) -> str:
    """Code that shows that `excluded` cannot be imported, then imports `modules` without them."""
    return f"""
import importlib, importlib.util
reachable = [name for name in {excluded!r} if importlib.util.find_spec(name)]
assert not reachable, f"still importable: {{reachable}}"
for module in {modules!r}:
    importlib.import_module(module)
assert not [name for name in {excluded!r} if name in sys.modules]
print("imported", {len(modules)})
"""


@pytest.mark.parametrize(
    ("modules", "excluded"),
    [
        pytest.param(modules_of("plinth_api"), NOT_FOR_THE_API, id="the API knows nothing but pydantic"),
        pytest.param(
            WITH_THE_LOOP,
            NOT_FOR_THE_LOOP,
            id="the loop needs neither Ray nor MLflow nor datasets nor peft",
        ),
    ],
)
def test_it_imports_where_these_are_not_installed(tmp_path, modules, excluded):
    done = run_clean(environment_without(tmp_path, excluded), importing(modules, excluded))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["imported", str(len(modules))]


def test_an_excluded_package_is_missed(tmp_path):
    """The tests above would see an import: this one is not to be had."""
    done = run_clean(environment_without(tmp_path, ("pydantic",)), "import plinth_api.base")
    assert done.returncode != 0
    assert "No module named 'pydantic'" in done.stderr


def test_workloads_never_import_the_cluster_s_clients():
    """Read from the source, so that an import inside a function counts too."""
    imported = {path: imports_of(path) for path in sorted((ROOT / "workloads").rglob("*.py"))}
    assert any("ray" in names for names in imported.values())
    assert not {str(path): names for path, names in imported.items() if names & {*CLUSTER, "plinth_operator"}}


def imports_of(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names
