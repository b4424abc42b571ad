"""Kubernetes Events: for each change of phase or reason and each step of a rollout, and for nothing else. Pure."""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from plinth_operator.constants import FIELD_MANAGER, GROUP, VERSION
from plinth_operator.facts import Manifest
from plinth_operator.status.rollout import rollout_news

_WARNINGS = ("Failed", "Degraded")


class _Key(Protocol):
    @property
    def kind(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...


def event_of(key: _Key, uid: str, old: Mapping[str, Any], new: Mapping[str, Any], *, now: datetime) -> Manifest | None:
    """The Event for a change of status; None where neither phase nor reason has changed.

    Its name is made of what it says, so that a transition that is told twice is one Event.
    """
    before, after = (old.get("phase"), old.get("reason")), (new.get("phase"), new.get("reason"))
    if before == after:
        return None
    phase, reason = str(new["phase"]), str(new.get("reason") or new["phase"])
    moved = f"{old['phase']} -> {phase}" if old.get("phase") not in (None, phase) else ""
    message = ": ".join(part for part in (moved, new.get("message") or _attempt(new)) if part) or phase
    # A service without replicas is well, and has a reason.
    warns = phase in _WARNINGS or reason not in (phase, "ScaledToZero")
    return _event(key, uid, reason, message, warns=warns, what=f"{before} {after}", now=now)


def rollout_event_of(
    key: _Key, uid: str, old: Mapping[str, Any], new: Mapping[str, Any], *, now: datetime
) -> Manifest | None:
    """The Event for a step of a rollout that has begun or ended; None for any other change of status."""
    news = rollout_news(old, new)
    if news is None:
        return None
    reason, message = news
    return _event(key, uid, reason, message, warns=new["rollout"]["phase"] == "RolledBack", what=message, now=now)


def _event(key: _Key, uid: str, reason: str, message: str, *, warns: bool, what: str, now: datetime) -> Manifest:
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    identity = hashlib.sha256(f"{uid} {what} {stamp}".encode()).hexdigest()[:10]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{key.name}.{identity}", "namespace": key.namespace},
        "involvedObject": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": key.kind,
            "namespace": key.namespace,
            "name": key.name,
            "uid": uid,
        },
        "type": "Warning" if warns else "Normal",
        "reason": reason,
        "message": message[:1024],
        "source": {"component": FIELD_MANAGER},
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }


def _attempt(status: Mapping[str, Any]) -> str:
    """Which attempt a job is at, where it has one that runs."""
    attempts = status.get("attempts") or [{}]
    last = attempts[-1]
    return f"attempt {last['number']}, RayJob {last['rayJob']}" if "rayJob" in last and "finishedAt" not in last else ""
