"""What the API server says of a child that it refuses, as a cause. Pure.

It speaks of the child; a user of podTemplate should read the path that they wrote.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from plinth_api.errors import InvalidSpec, Problem
from plinth_api.status import CommonStatus
from plinth_operator.facts import Manifest
from plinth_operator.plan.acceptance import invalid_spec_cause
from plinth_operator.plan.strategic_merge import MERGE_KEYS
from plinth_operator.status.pod_causes import shorten
from plinth_operator.status.reasons import Cause

_TEMPLATE = re.compile(r"^spec\.rayCluster(?:Spec|Config)\.(?:headGroupSpec|workerGroupSpecs\[0\])\.template\.")
_UNKNOWN_FIELD = re.compile(r'unknown field "([^"]+)"')
_TYPED_PATCH = "failed to create typed patch object"
_TYPED_LINE = re.compile(r"^\s*\.(\S+?): (.+)$", re.MULTILINE)
_UNKNOWN_WORDS = "field not declared in schema"
_QUANTITY_PATTERN = r"should match '^(\+|-)?(([0-9]+"


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the API server answered to a child that was created or applied.

    Attributes:
        status: HTTP status.
        reason: As KubeError has it.
        message: The server's sentence.
        details: Paths of the child's fields, each with what is wrong.
    """

    status: int
    reason: str
    message: str
    details: Sequence[tuple[str, str]] = ()


def refusal_cause(document: Manifest, child: Manifest, refusal: Refusal) -> Cause | None:
    """Why a child is not there; None for what another try may mend.

    Args:
        document: The resource. Its podTemplate is the one part of a child that a user writes.
        child: What the API server was given.
        refusal: What it answered.
    """
    pod_template = document["spec"].get("compute", {}).get("podTemplate")
    name = f"{child['kind']} {child['metadata']['name']}"
    said = _in_order(refusal)
    if refusal.reason == "NameConflict":
        return Cause("NameConflict", said)
    if refusal.status == 403:
        return _forbidden_cause(name, said)
    refused = refusal.status in (400, 413, 422) or _TYPED_PATCH in said or "request is too large" in said
    if refused and pod_template and (problems := set(_template_problems(child, refusal))):
        return invalid_spec_cause(InvalidSpec(*sorted(problems, key=str)))
    if refused or "admission webhook" in said or "failed calling webhook" in said:
        return Cause("ObjectRefused", f"the API server refuses {name}: {said}")
    return None


def steady_cause(cause: Cause, old: CommonStatus, generation: int | None) -> Cause:
    """The cause in the words that the status has already, while the spec is the same.

    Of several wrong fields a server-side apply tells some, and others the next time: a status that follows would be
    written at each try.
    """
    told = cause.reason == "InvalidSpec" == old.reason and old.observed_generation == generation
    return Cause(cause.reason, old.message) if told and old.message else cause


def _in_order(refusal: Refusal) -> str:
    """The server's words; it says several things in any order, and a status that changes with it is written anew."""
    told = sorted(f"{path}: {words}" for path, words in refusal.details if path.startswith(("spec", "metadata")))
    if told:
        return shorten("; ".join(told))
    first, *lines = refusal.message.splitlines() or [""]
    return shorten(" ".join([first, *sorted(line.strip() for line in lines)]))


def _forbidden_cause(name: str, said: str) -> Cause | None:
    if "being terminated" in said:
        return None
    if "exceeded quota" in said or "failed quota" in said:
        return Cause("QuotaExceeded", f"the ResourceQuota of the namespace refuses {name}: {said}")
    return Cause("ObjectRefused", f"the API server refuses {name}: {said}")


def _template_problems(child: Manifest, refusal: Refusal) -> Iterator[Problem]:
    """What is said of pod templates, of which head and workers have the same."""
    found = [*refusal.details, *_TYPED_LINE.findall(refusal.message)]
    found += [(path, _UNKNOWN_WORDS) for path in _UNKNOWN_FIELD.findall(refusal.message)]
    for path, words in found:
        if place := _TEMPLATE.match(path):
            yield Problem(f"spec.compute.podTemplate.{_by_key(child, path)[place.end() :]}", _sentence(words))


def _sentence(words: str) -> str:
    """Without the path, which stands before it, and without Go's way of writing a value."""
    if words == _UNKNOWN_WORDS:
        return "is no field of a pod template"
    if _QUANTITY_PATTERN in words:
        return f'must be a quantity: 8, "500m", 96Gi, not {words.removeprefix("Invalid value: ").partition(":")[0]}'
    bare = re.sub(r", got &.*$", "", re.sub(r"^.* in body ", "", words))
    return re.sub(r': "(\w+)"$', r", not \1", bare)


def _by_key(child: Manifest, path: str) -> str:
    """The path with `[name="ray"]` for `[0]` in lists that are merged: the user's list has other positions."""
    where: Any = child
    parts: list[str] = []
    for part in re.findall(r"[^.\[\]]+|\[\d+\]|\[[^\]]*\]", path):
        if re.fullmatch(r"\[\d+\]", part) and isinstance(where, list):
            where = where[int(part[1:-1])]
            key = MERGE_KEYS.get(parts[-1].lstrip("."), "")
            named = isinstance(where, dict) and key in where
            # The group of the workers is ours: its position is the one that is looked for.
            parts.append(f'[{key}="{where[key]}"]' if named else part)
            continue
        where = where.get(part) if isinstance(where, dict) else None
        parts.append(part if part.startswith("[") or not parts else f".{part}")
    return "".join(parts)
