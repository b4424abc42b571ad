"""What a URI of the API means where the workload runs: claims become paths, registry names get their prefix."""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

OBJECT_STORES = frozenset({"s3", "gs", "abfs", "abfss"})
_REGISTRY = re.compile(r"^models:/(?P<name>[^/@\s]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@\s]+))$")


def scheme_of(uri: str) -> str:
    """`pvc` of `pvc://claim/path`, `models` of `models:/name/3`."""
    return uri.split(":", 1)[0]


def local_path(uri: str) -> str | None:
    """The path of a file:// URI, None for any other."""
    return uri.removeprefix("file://") if uri.startswith("file://") else None


def in_object_store(uri: str) -> bool:
    """Whether `uri` is of a storage without folders, which has to be asked for each file."""
    return scheme_of(uri) in OBJECT_STORES


def mounted(uri: str, volume_root: str) -> str:
    """`pvc://claim/path` as the file:// URI of the place where the claim is mounted; any other URI as it is."""
    if scheme_of(uri) != "pvc":
        return uri
    return f"file://{volume_root.rstrip('/')}/{uri.removeprefix('pvc://')}"


def unmounted(text: str, volume_root: str) -> str:
    """A URI, or any text, in which what `mounted` makes is pvc:// again, as its user wrote it."""
    return text.replace(f"file://{volume_root.rstrip('/')}/", "pvc://")


def holds_password(uri: str) -> bool:
    """Whether `uri` has the form scheme://user:password@host: it would end up in logs and run records."""
    return urlsplit(uri).password is not None


def is_registry_uri(uri: str) -> bool:
    """Whether `uri` is models:/name/3 or models:/name@alias."""
    return _REGISTRY.match(uri) is not None


def registry_uri(uri: str, prefix: str) -> str:
    """`models:/name@alias` with the registry's prefix before the name, unless it is already there.

    Args:
        uri: A models:/ URI.
        prefix: `<namespace>.` on a cluster, empty on a laptop.
    """
    name = uri.removeprefix("models:/")
    return f"models:/{name}" if prefix and name.startswith(prefix) else f"models:/{prefix}{name}"


def registry_parts(uri: str) -> tuple[str, str | None, str | None]:
    """Name, version and alias of a models:/ URI; one of the last two is None.

    Raises:
        ValueError: The URI is not of either form.
    """
    match = _REGISTRY.match(uri)
    if match is None:
        raise ValueError(f"{uri} is not models:/<name>/<version> or models:/<name>@<alias>")
    return match["name"], match["version"], match["alias"]


def pinned(uri: str, versions: Mapping[str, str]) -> str:
    """The URI with its alias replaced by the version that `versions` gives for the whole URI."""
    return versions.get(uri, uri)
