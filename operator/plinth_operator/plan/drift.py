"""Whether a child must be applied again: our hash differs, or somebody has changed a field that we set. Pure."""

import json
import math
from collections.abc import Iterable
from typing import Any

from plinth_api.quantity import parse_quantity
from plinth_operator.constants import HASH_ANNOTATION
from plinth_operator.facts import Manifest, ObjectFacts

_QUANTITY_FIELDS = ("requests", "limits", "sizeLimit", "divisor")
"""Fields of a pod that are quantities, or hold them."""


def differs(known: ObjectFacts | None, wanted: Manifest) -> bool:
    """Whether the object that is known is not what is wanted.

    A forced apply is not idempotent (KubeRay writes the whole object and takes over fields that it defaults), so what
    others have added is left alone.
    """
    if known is None or known.hash != wanted["metadata"]["annotations"][HASH_ANNOTATION]:
        return True
    if not known.spec:
        return False
    actual, spec = json.loads(known.spec), wanted.get("spec") or {}
    if wanted["kind"] == "NetworkPolicy":
        # A label more in a selector, and the policy is about other pods; nothing in what we set has defaults.
        return any(actual.get(field) != value for field, value in spec.items())
    return not holds(actual, spec)


def changed_children(
    wanted: Iterable[Manifest], known: Iterable[ObjectFacts]
) -> tuple[tuple[Manifest, ...], tuple[ObjectFacts, ...]]:
    """The children that are missing or differ, and those to delete first: what is immutable is made anew.

    An attempt that never got its RayJob may have left a ConfigMap of an older spec.
    """
    there = {(facts.kind, facts.name): facts for facts in known}
    changed = [child for child in wanted if differs(there.get((child["kind"], child["metadata"]["name"])), child)]
    names = {(child["kind"], child["metadata"]["name"]) for child in changed if child.get("immutable")}
    return tuple(changed), tuple(there[name] for name in sorted(names & there.keys()))


def holds(actual: Any, wanted: Any, *, is_quantity: bool = False) -> bool:
    """Whether every field that `wanted` sets has the same value in `actual`; lists agree item by item.

    KubeRay writes whole objects, without what is empty and with quantities in their canonical form: what a user's
    podTemplate says in other words is the same.
    """
    if actual is None:
        return _is_empty(wanted)
    if isinstance(wanted, dict):
        return isinstance(actual, dict) and all(
            holds(actual.get(key), value, is_quantity=is_quantity or key in _QUANTITY_FIELDS)
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(actual, list)
            and len(actual) == len(wanted)
            and all(holds(mine, theirs) for mine, theirs in zip(actual, wanted, strict=True))
        )
    return bool(actual == wanted) or (is_quantity and _same_quantity(actual, wanted))


def _is_empty(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_empty(item) for item in value.values())
    return value in (None, "", False, 0, [])


def _same_quantity(one: Any, other: Any) -> bool:
    try:
        return math.isclose(parse_quantity(one), parse_quantity(other))
    except ValueError:
        return False
