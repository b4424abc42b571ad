"""The clients of object stores: S3 and what speaks its protocol, Google's, Azure's, all through Arrow's file systems.

Credentials are those of the environment, as each store's own tools read them: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL,
GOOGLE_APPLICATION_CREDENTIALS. What is read through fsspec (data, also by `datasets`) uses the same clients, since the
libraries that fsspec names for it (s3fs) cannot be installed beside the Kubernetes client.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper

from plinth_api.uris import scheme_of
from plinth_workloads.errors import Reason, UserError

_REFUSALS = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "status 403", "Permission denied")
_THROUGH_FSSPEC = ("s3", "gs")
"""Azure's URIs name an account beside the path, which fsspec's paths have no place for."""


def open_store(uri: str) -> tuple[Any, str]:
    """The `pyarrow.fs.FileSystem` of a URI, and the path in it.

    Raises:
        OSError: The region of a bucket is not known and cannot be asked for.
        ValueError: The URI is not one of a store.
    """
    from pyarrow import fs

    if scheme_of(uri) != "s3":
        files, path = fs.FileSystem.from_uri(uri)
        return files, path
    parts = urlsplit(uri)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not (endpoint or region):
        region = fs.resolve_s3_region(parts.netloc)
    return fs.S3FileSystem(endpoint_override=endpoint, region=region), f"{parts.netloc}{parts.path}"


@contextmanager
def explained(uri: str, field: str, otherwise: Reason) -> Iterator[None]:
    """Tell an error of a store in a sentence.

    Args:
        uri: What was asked for.
        field: Where a Secret with credentials would be named.
        otherwise: The reason of what is no refusal.

    Raises:
        UserError: AccessDenied where the store refuses, else for the other reason.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if any(word in told for word in _REFUSALS):
            hint = f"check the credentials in {field}, or those of the environment"
            raise UserError("AccessDenied", f"{uri} refuses access; {hint} ({told})") from error
        raise UserError(otherwise, f"{uri} cannot be reached: {told}") from error


class BucketFiles(ArrowFSWrapper):
    """A bucket of S3 or of Google's store, as fsspec asks for it; its paths begin with the bucket."""

    def __init__(self, bucket: str = "", **options: Any) -> None:
        """Connect.

        Args:
            bucket: With its scheme: s3://name.
            options: Of fsspec.
        """
        super().__init__(fs=open_store(bucket)[0], **options)

    @property
    def protocol(self) -> str:
        """The scheme of the URIs, which Arrow calls otherwise (gcs)."""
        return {"gcs": "gs"}.get(self.fs.type_name, self.fs.type_name)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return str(path).partition("://")[2].rstrip("/") if "://" in str(path) else str(path).rstrip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        parts = urlsplit(path)
        return {"bucket": f"{parts.scheme}://{parts.netloc}"}


for _scheme in _THROUGH_FSSPEC:
    fsspec.register_implementation(_scheme, BucketFiles, clobber=True)
