"""Reading manifests that may lack any field, or have it null: what is missing reads as empty, never as an error."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def section(manifest: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The mapping at `path`; empty where there is none."""
    found: Any = manifest
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def entries(manifest: Mapping[str, Any], *path: str) -> tuple[Mapping[str, Any], ...]:
    """The mappings of the list at `path`."""
    found = section(manifest, *path[:-1]).get(path[-1])
    return tuple(entry for entry in found if isinstance(entry, Mapping)) if isinstance(found, list) else ()


def text(manifest: Mapping[str, Any], *path: str) -> str:
    """The text at `path`; empty where there is none."""
    found = section(manifest, *path[:-1]).get(path[-1])
    return found if isinstance(found, str) else ""


def whole(manifest: Mapping[str, Any], *path: str) -> int:
    """The number at `path`, as a number or as text; 0 where there is none."""
    found = section(manifest, *path[:-1]).get(path[-1])
    try:
        return int(found) if found is not None else 0
    except (TypeError, ValueError):
        return 0


def timestamp(manifest: Mapping[str, Any], *path: str) -> datetime | None:
    """The RFC 3339 time at `path`, with its zone."""
    try:
        found = datetime.fromisoformat(text(manifest, *path))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def condition(manifest: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The condition of this type in status.conditions; empty where there is none."""
    return next((entry for entry in entries(manifest, "status", "conditions") if entry.get("type") == kind), {})


def is_true(manifest: Mapping[str, Any], kind: str) -> bool:
    """Whether the condition of this type has status True."""
    return condition(manifest, kind).get("status") == "True"
