"""What the operator makes of each example, as files under golden/ that are reviewed like code.

`python -m golden --refresh` writes them anew; without the flag it names the first difference.
"""

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from plinth_api.model_service import ModelService
from plinth_api.parse import Resource
from plinth_api.resolve import referenced_aliases, resolve_serve_run, resolve_train_run
from plinth_operator.plan.children import job_children, service_children
from plinth_operator.plan.run_config import resolve_settings_for
from plinth_operator.settings import Settings
from plinth_workloads.manifests import load_manifests

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "golden"
EXAMPLES = sorted(path for folder in ("demo", "vllm") for path in (ROOT / "examples" / folder).glob("*.yaml"))
"""Those for `plinth run`, whose variants for clusters have no field that these lack; and a service of vLLM."""

SETTINGS = Settings(
    workload_image="plinth-workloads:test",
    vllm_image="plinth-vllm:test",
    tracking_uri="http://mlflow.plinth:5000",
)
UID = "0a1b2c3d-0000-4000-8000-000000000000"
VERSION = "3"


def rendered(example: Path) -> dict[str, str]:
    """The children of an example's resource: file names with their YAML."""
    (manifest,) = load_manifests([example])
    resource = as_on_a_cluster(manifest.resource)
    settings = resolve_settings_for(resource, SETTINGS, run_id=None if isinstance(resource, ModelService) else "r1")
    aliases = referenced_aliases(resource, settings.registry_prefix)
    versions = {uri: f"{uri.partition('@')[0]}/{VERSION}" for uri in aliases}
    if isinstance(resource, ModelService):
        children = service_children(resource, resolve_serve_run(resource, settings, versions), settings=SETTINGS)
    else:
        run = resolve_train_run(resource, settings, versions)
        children = job_children(resource, run, attempt=1, settings=SETTINGS)
    return {f"{child['kind'].lower()}.yaml": _text(child) for child in children}


def as_on_a_cluster(resource: Resource) -> Resource:
    """The resource with what an API server adds."""
    metadata = resource.metadata.model_copy(update={"namespace": "team-a", "uid": UID})
    return resource.model_copy(update={"metadata": metadata})


def kept(example: Path) -> dict[str, str]:
    """The files of an example as they are."""
    return {path.name: path.read_text() for path in sorted(_folder(example).glob("*.yaml"))}


def differences(example: Path) -> str:
    """A unified diff from the files to what is rendered now; empty where there is none."""
    old, new = kept(example), rendered(example)
    lines: list[str] = []
    for name in sorted({*old, *new}):
        path = f"{_folder(example).relative_to(ROOT)}/{name}"
        before, after = old.get(name, "").splitlines(), new.get(name, "").splitlines()
        lines += difflib.unified_diff(before, after, path, f"{path} (rendered)", lineterm="")
    return "\n".join(lines)


def refresh(example: Path) -> None:
    """Write the files of an example anew."""
    folder = _folder(example)
    folder.mkdir(parents=True, exist_ok=True)
    for name in kept(example):
        (folder / name).unlink()
    for name, text in rendered(example).items():
        (folder / name).write_text(text)


def _folder(example: Path) -> Path:
    return FOLDER / example.stem


def _text(child: dict[str, Any]) -> str:
    """YAML with the documents that travel as text opened up, so that a reviewer sees what changes in them."""
    opened = json.loads(json.dumps(child))
    if "data" in opened:
        opened["data"] = {name: json.loads(text) for name, text in opened["data"].items()}
    if "serveConfigV2" in opened.get("spec", {}):
        opened["spec"]["serveConfigV2"] = yaml.safe_load(opened["spec"]["serveConfigV2"])
    return yaml.safe_dump(opened, sort_keys=False, width=120)


def main() -> int:
    """Refresh or compare the files of every example."""
    parser = argparse.ArgumentParser(prog="python -m golden", description="Golden files of the examples.")
    parser.add_argument("--refresh", action="store_true", help="write the files anew")
    if parser.parse_args().refresh:
        for example in EXAMPLES:
            refresh(example)
        return 0
    difference = "\n".join(filter(None, map(differences, EXAMPLES)))
    sys.stdout.write(difference)
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
