"""Files of models that MLflow has: where they are and how large, and the files themselves.

Beside `tracking.py`, which keeps runs and versions, and like it imports MLflow when that is first needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plinth_api.uris import is_registry_uri, registry_parts
from plinth_workloads.errors import UserError
from plinth_workloads.tracking import open_client
from plinth_workloads.tracking_errors import looking_for, reaching


@dataclass(frozen=True, slots=True)
class RemoteFiles:
    """The files of models:/name/3 or runs:/id/path.

    Attributes:
        source: Where they are; versions of other names that were made from the same files have the same.
        sizes: Bytes by path; empty where the store does not tell all of them.
    """

    source: str
    sizes: dict[str, int]


def remote_files(tracking_uri: str, uri: str) -> RemoteFiles:
    """What a URI stands for.

    Raises:
        UserError: ModelNotFound, TrackingUnavailable or TrackingDenied.
    """
    with reaching(tracking_uri):
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        client = open_client(tracking_uri)
        with looking_for(uri, tracking_uri):
            source = uri
            if is_registry_uri(uri):
                name, version, _ = registry_parts(uri)
                source = client.get_model_version_download_uri(name, str(version))
            found = dict(_listed(get_artifact_repository(source, tracking_uri=tracking_uri)))
    sizes = {path: size for path, size in found.items() if size is not None}
    return RemoteFiles(source, sizes if len(sizes) == len(found) else {})


def download(tracking_uri: str, uri: str, folder: Path) -> Path:
    """Download models:/name/3 or runs:/id/path.

    Returns:
        The folder with the files.

    Raises:
        UserError: ModelNotFound, TrackingUnavailable or TrackingDenied.
    """
    with reaching(tracking_uri):
        import requests
        from mlflow.artifacts import download_artifacts

        open_client(tracking_uri)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with looking_for(uri, tracking_uri):
                return Path(download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=tracking_uri))
        except requests.exceptions.RequestException:  # an OSError too
            raise
        except OSError as error:
            raise UserError("ModelNotFound", f"{uri} cannot be downloaded: {error}") from error


def _listed(repository: Any, folder: str | None = None) -> Iterator[tuple[str, int | None]]:
    for entry in repository.list_artifacts(folder):
        if entry.is_dir:
            yield from _listed(repository, entry.path)
        else:
            yield entry.path, entry.file_size
