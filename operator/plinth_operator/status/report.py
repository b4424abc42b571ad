"""When a status is worth a write, and the patch that makes the old one the new one."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

_INTERVAL = timedelta(seconds=30)
_CREEPING = ("progress", "usage")
"""Fields that change while nothing happens: they are written at most every 30 s, or each percent."""


def should_write(old: dict[str, Any] | None, new: dict[str, Any], *, now: datetime) -> bool:
    """Whether the difference between two statuses, in wire form, is worth a write now."""
    if old is None or _without_creeping(old) != _without_creeping(new):
        return True
    return _progressed(old.get("progress"), new.get("progress"), now) or _used(old.get("usage"), new.get("usage"))


def status_patch(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) from old to new: null for what is gone, lists whole; empty where they agree."""
    before = old or {}
    patch: dict[str, Any] = dict.fromkeys(before.keys() - new.keys())
    for key, value in new.items():
        known = before.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            if inner := status_patch(known, value):
                patch[key] = inner
        elif key not in before or known != value:
            patch[key] = value
    return patch


def _without_creeping(status: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in status.items() if key not in _CREEPING}


def _progressed(old: dict[str, Any] | None, new: dict[str, Any] | None, now: datetime) -> bool:
    if not old or not new:
        return bool(old) != bool(new)
    if {**old, "updatedAt": None} == {**new, "updatedAt": None}:
        return False
    if old.get("percent") != new.get("percent"):
        return True
    return "updatedAt" not in old or now - datetime.fromisoformat(old["updatedAt"]) >= _INTERVAL


def _used(old: dict[str, Any] | None, new: dict[str, Any] | None) -> bool:
    """Usage has no time of its own: 30 s are 30 seconds of each GPU."""
    if not old or not new:
        return bool(old) != bool(new)
    if old.get("gpus") != new.get("gpus") or old.get("wastedGpuSeconds") != new.get("wastedGpuSeconds"):
        return True
    more = abs(int(new.get("gpuSeconds") or 0) - int(old.get("gpuSeconds") or 0))
    return more > 0 and more >= _INTERVAL.total_seconds() * int(new.get("gpus") or 0)
