"""Whether a child must be applied again: our hash differs, or somebody has changed a field that we set. Pure."""

import json
from typing import Any

from plinth_operator.constants import HASH_ANNOTATION
from plinth_operator.facts import Manifest, ObjectFacts


def differs(known: ObjectFacts | None, wanted: Manifest) -> bool:
    """Whether the object that is known is not what is wanted.

    A forced apply is not idempotent (KubeRay writes the whole object and takes over fields that it defaults), so what
    others have added is left alone.
    """
    if known is None or known.hash != wanted["metadata"]["annotations"][HASH_ANNOTATION]:
        return True
    return bool(known.spec) and not holds(json.loads(known.spec), wanted.get("spec"))


def holds(actual: Any, wanted: Any) -> bool:
    """Whether every field that `wanted` sets has the same value in `actual`; lists agree item by item."""
    if isinstance(wanted, dict):
        return isinstance(actual, dict) and all(holds(actual.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(actual, list)
            and len(actual) == len(wanted)
            and all(holds(mine, theirs) for mine, theirs in zip(actual, wanted, strict=True))
        )
    # An API server leaves out what is empty.
    return bool(actual == wanted) or (actual is None and wanted in ("", False, 0))
