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
        return [document for file in files for document in documents_of(file.read_text())]
    return list(source)


def documents_of(text: str) -> list[dict[str, Any]]:
    """Everything in a text of YAML documents."""
    # A SafeLoader, only not by that name.
    return [document for document in yaml.load_all(text, Loader=_Loader) if document]
