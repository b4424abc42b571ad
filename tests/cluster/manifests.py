"""YAML files as `kubectl` reads them: `5e-3` is a number there, and a word to PyYAML, which knows YAML 1.1 only."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

Objects = Path | dict[str, Any] | Iterable[dict[str, Any]]
"""What can be applied: a YAML file, a folder of them, one document or several."""


class _Loader(yaml.SafeLoader):
    """PyYAML's own with the floats of YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def documents(source: Objects) -> list[dict[str, Any]]:
    """Everything in the source, one after the other."""
    if isinstance(source, dict):
        return [source]
    if isinstance(source, Path):
        files = sorted(source.glob("*.yaml")) if source.is_dir() else [source]
        # A SafeLoader, only not by that name.
        read = [yaml.load_all(file.read_text(), Loader=_Loader) for file in files]
        return [document for documents in read for document in documents if document]
    return list(source)
