"""What every manifest has: names, versions, and the marks that the operator left on it."""

import json
from collections.abc import Mapping
from typing import Any

from plinth_operator.constants import HASH_ANNOTATION, SPEC_HASH_ANNOTATION, UID_LABEL
from plinth_operator.facts import Manifest, ObjectFacts
from plinth_operator.status.reading import entries, section, text, timestamp, whole

_HAND_EDITED = ("RayService", "NetworkPolicy", "Ingress")
"""Kinds that are put right again when somebody changes a field that we set."""


def object_facts(manifest: Manifest) -> ObjectFacts:
    """The facts of an object of which nothing more is read: ConfigMap, NetworkPolicy, Service, Ingress."""
    return ObjectFacts(**shared_fields(manifest))


def shared_fields(manifest: Manifest) -> dict[str, Any]:
    """The fields of ObjectFacts, for the constructor of any of its kinds."""
    metadata = section(manifest, "metadata")
    return {
        "kind": text(manifest, "kind"),
        "namespace": text(metadata, "namespace"),
        "name": text(metadata, "name"),
        "uid": text(metadata, "uid"),
        "owner_uid": text(metadata, "labels", UID_LABEL),
        "resource_version": whole(metadata, "resourceVersion"),
        "created_at": timestamp(metadata, "creationTimestamp"),
        "hash": text(metadata, "annotations", HASH_ANNOTATION),
        "spec_hash": text(metadata, "annotations", SPEC_HASH_ANNOTATION),
        "deleting": bool(metadata.get("deletionTimestamp")),
        "spec": json.dumps(dict(section(manifest, "spec"))) if text(manifest, "kind") in _HAND_EDITED else "",
    }


def owner_name(manifest: Mapping[str, Any], *kinds: str) -> str:
    """Name of the owner of one of these kinds; empty where there is none."""
    owners = entries(manifest, "metadata", "ownerReferences")
    return next((text(owner, "name") for owner in owners if owner.get("kind") in kinds), "")
