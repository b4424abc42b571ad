"""`python -m plinth_api.generate [--check]`: the CRDs, their copy in the chart, and docs/api.md, from the models."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from plinth_api.crd import crd_yaml_files
from plinth_api.reference import reference

REPOSITORY = Path(__file__).resolve().parents[2]


@cache
def generated_files() -> Mapping[str, str]:
    """Every generated file's text by its path in the repository."""
    crds = crd_yaml_files()
    return {
        **{f"crds/{name}": text for name, text in crds.items()},
        **{f"charts/plinth/crds/{name}": text for name, text in crds.items()},
        "docs/api.md": reference(),
    }


def drifted_files(root: Path) -> dict[str, str]:
    """Those of `generated_files` that are missing under `root` or have another text there."""
    return {path: text for path, text in generated_files().items() if _read(root / path) != text}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with --check name those that differ; the exit code is 1 when there are any."""
    parser = argparse.ArgumentParser(prog="python -m plinth_api.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not up to date")
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="folder of the repository")
    options = parser.parse_args(arguments)
    drifted = drifted_files(options.root)
    if options.check:
        sys.stderr.writelines(f"{path} is not up to date; run `make generate`\n" for path in drifted)
        return 1 if drifted else 0
    for path, text in drifted.items():
        target = options.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
