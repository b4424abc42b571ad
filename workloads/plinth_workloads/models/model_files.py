"""The files of a model's folder: a path enters, what its JSON says leaves, or in a sentence why it cannot be used."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def unusable_files(told: str) -> Iterator[None]:
    """Tell what transformers raises of a folder as ModelLoadFailed, after the words `told`.

    A config.json that is wrong raises nearly anything: a field of another type, a division by no heads, an assertion.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
        # A first line may only name the field.
        said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        # These were written for whoever has the files; all others may come from any line of code.
        hint = "" if isinstance(error, OSError | ValueError | ImportError | RuntimeError) else "; check its JSON files"
        raise UserError("ModelLoadFailed", f"{told}: {said}{hint}") from error
