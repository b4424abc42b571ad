"""The JSON files of a model's folder: a path enters, what it says leaves."""

import json
from pathlib import Path
from typing import Any

from plinth_workloads.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no such file.

    Raises:
        UserError: ModelLoadFailed where it is no JSON object.
    """
    content = _parsed(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError("ModelLoadFailed", f"{path.parent}: {path.name} is no JSON object")
    return content


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """The objects in a file; none where there is no such file.

    Raises:
        UserError: ModelLoadFailed where it is no list of JSON objects.
    """
    content = _parsed(path)
    if content is None:
        return []
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise UserError("ModelLoadFailed", f"{path.parent}: {path.name} is no list of JSON objects")
    return content


def _parsed(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError("ModelLoadFailed", f"{path.parent}: {path.name} cannot be read: {error}") from error
