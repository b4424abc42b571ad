"""What every child of a resource has: its name, labels, owner and our hash.

A child belongs to its resource by ownerReference (so that Kubernetes deletes it) and by label (so that one selector
finds it, and the pods that KubeRay makes from our templates).
"""

import hashlib
import json
from typing import Any

from plinth_api.parse import Resource
from plinth_operator.constants import (
    ATTEMPT_LABEL,
    GROUP,
    HASH_ANNOTATION,
    KIND_LABEL,
    MANAGED_BY_LABEL,
    NAME_LABEL,
    UID_LABEL,
    VERSION,
)
from plinth_operator.facts import Manifest

_UID_CHARACTERS = 5
"""Enough to tell a job from a service of the same name, and from its predecessor: MAX_JOB_NAME_LENGTH counts on it."""


def uid_of(resource: Resource) -> str:
    """The uid that the API server gave; a resource from a watch always has one."""
    assert resource.metadata.uid
    return resource.metadata.uid


def namespace_of(resource: Resource) -> str:
    """The namespace; a resource from a watch always has one."""
    assert resource.metadata.namespace
    return resource.metadata.namespace


def child_name(resource: Resource, attempt: int | None = None) -> str:
    """`<name>-<first 5 of uid>`, and `-<attempt>` for what is made anew in each attempt."""
    name = f"{resource.metadata.name}-{uid_of(resource)[:_UID_CHARACTERS]}"
    return name if attempt is None else f"{name}-{attempt}"


def child_labels(resource: Resource, attempt: int | None = None) -> dict[str, str]:
    """The labels of a child, and of pods made from its templates."""
    labels = {
        MANAGED_BY_LABEL: "plinth",
        UID_LABEL: uid_of(resource),
        NAME_LABEL: resource.metadata.name,
        KIND_LABEL: resource.kind,
    }
    return labels if attempt is None else {**labels, ATTEMPT_LABEL: str(attempt)}


def child_metadata(resource: Resource, name: str, attempt: int | None = None) -> dict[str, Any]:
    """Metadata of a child called `name`."""
    return {
        "name": name,
        "namespace": namespace_of(resource),
        "labels": child_labels(resource, attempt),
        "annotations": {},
        "ownerReferences": [
            {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": resource.kind,
                "name": resource.metadata.name,
                "uid": uid_of(resource),
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def content_hash(content: Any) -> str:
    """Sixteen hexadecimal digits that change when JSON-like `content` changes; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def manifest_hash(manifest: Manifest) -> str:
    """The hash of a manifest, whether or not it has one on it."""
    metadata = manifest["metadata"]
    annotations = {key: text for key, text in metadata.get("annotations", {}).items() if key != HASH_ANNOTATION}
    return content_hash({**manifest, "metadata": {**metadata, "annotations": annotations}})


def sealed(manifest: Manifest) -> Manifest:
    """The manifest with its hash as an annotation."""
    metadata = manifest["metadata"]
    annotations = {**metadata["annotations"], HASH_ANNOTATION: manifest_hash(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}
