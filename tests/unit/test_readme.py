"""The README says what is there: its YAML are the demo's files, its tree the repository's, its commands exist."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = ROOT / "examples" / "demo"

FOLDED = ("tests", "crds", "charts", "docs/adr", "benchmarks/results")
"""Below these, a line for the folder stands for the files in it; so it does for the YAML of examples."""

UNNAMED = frozenset({".gitignore", "py.typed"})


def tree() -> dict[str, str]:
    """Every path of the README's tree with its description; folders end in a slash."""
    block = README.split("<!-- tree -->\n```\n")[1].split("\n```\n<!-- /tree -->")[0]
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        name, _, description = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        path = "".join(folders[:depth]) + name
        assert path not in found, f"{path} stands twice"
        found[path] = description.strip()
        if name.endswith("/"):
            folders[depth:] = [name]
    return found


def repository_files() -> list[str]:
    """The files that git has or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted({path for path in listed if path and (ROOT / path).is_file() and Path(path).name not in UNNAMED})


def named_by(path: str) -> str:
    """The line that must stand for a file: its own, or its folder's."""
    folder = path.rpartition("/")[0]
    is_folded = any(folder == root or folder.startswith(f"{root}/") for root in FOLDED)
    is_example = path.startswith("examples/") and path.endswith(".yaml")
    return f"{folder}/" if is_folded or is_example else path


def test_every_file_has_a_line():
    files = repository_files()
    assert "workloads/plinth_workloads/train/loop.py" in files
    assert [path for path in files if named_by(path) not in tree()] == []


def test_no_line_names_what_is_not_there():
    files = repository_files()
    folders = {f"{parent}/" for path in files for parent in map(str, Path(path).parents)}
    assert [path for path in tree() if path not in {*files, *folders}] == []


def test_every_file_of_the_tree_is_described():
    lines = tree()
    silent = [path for path, text in lines.items() if not text]
    # A folder may leave it to the lines below it.
    assert [path for path in silent if not any(line != path and line.startswith(path) for line in lines)] == []


@pytest.mark.parametrize("name", ["pretrain.yaml", "finetune.yaml", "service.yaml"])
def test_the_yaml_is_the_demo_s(name):
    blocks = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(list(DEMO.glob("*.yaml")))
    assert (DEMO / name).read_text(encoding="utf-8") in blocks


def test_the_make_targets_exist():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^  ([a-z0-9-]+) ", listed, re.MULTILINE))
    named = set(re.findall(r"`make ([a-z0-9-]+)", README))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_the_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
