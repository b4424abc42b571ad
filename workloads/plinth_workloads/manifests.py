"""From YAML files to typed resources, read as Kubernetes reads them: `3e-4` is a number, a key stands once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from plinth_api.errors import InvalidSpec, Problem
from plinth_api.parse import Resource, parse_resource


@dataclass(frozen=True, slots=True)
class Manifest:
    """A resource and the file that it came from."""

    path: Path
    resource: Resource


class InvalidManifest(Exception):
    """A file that cannot be accepted; the message has a line for each problem, each with the file's path."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("\n".join(lines))


class _KubernetesLoader(yaml.SafeLoader):
    """YAML as the API server's clients read it, where PyYAML differs."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.value[index][0].start_mark
                )
        return super().construct_mapping(node, deep)


_KubernetesLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for _REPLACED in [("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_KubernetesLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def load_manifests(paths: Sequence[Path]) -> list[Manifest]:
    """The resources of all files, in order.

    Raises:
        InvalidManifest: With every problem of every file.
    """
    manifests: list[Manifest] = []
    problems: list[str] = []
    for path in paths:
        try:
            manifests += _load_file(path)
        except InvalidManifest as error:
            problems += error.lines
    if problems:
        raise InvalidManifest(problems)
    return manifests


def _load_file(path: Path) -> list[Manifest]:
    try:
        with path.open(encoding="utf-8") as file:
            documents = [document for document in yaml.load_all(file, _KubernetesLoader) if document is not None]
    except OSError as error:
        raise InvalidManifest([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise InvalidManifest([f"{path}: is not UTF-8 text"]) from error
    except yaml.YAMLError as error:
        raise InvalidManifest([f"{path}: is not YAML: {_yaml_problem(error)}"]) from error
    if not documents:
        raise InvalidManifest([f"{path}: is empty; it must hold a resource of apiVersion plinth.dev/v1alpha1"])
    manifests, problems = [], []
    for number, document in enumerate(documents, start=1):
        place = f"{path}" if len(documents) == 1 else f"{path} (document {number})"
        try:
            if not isinstance(document, dict):
                raise InvalidSpec(Problem("", f"must hold an object, not {type(document).__name__}"))
            manifests.append(Manifest(path, parse_resource(document)))
        except InvalidSpec as error:
            problems += [f"{place}: {problem}" for problem in error.problems]
    if problems:
        raise InvalidManifest(problems)
    return manifests


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return str(error).splitlines()[0]
