"""From a model's URI to a folder on this machine's disk."""

import hashlib
from pathlib import Path

from filelock import FileLock

from plinth_api.uris import scheme_of
from plinth_workloads import tracking
from plinth_workloads.errors import UserError

_HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def fetch_model(uri: str, *, tracking_uri: str, cache_dir: Path) -> Path:
    """The folder with the model's files, downloaded once.

    Args:
        uri: models:/name/3, runs:/id/path, hf://org/name@revision or file:///path.
        tracking_uri: The MLflow that models:/ and runs:/ speak of.
        cache_dir: Where downloads are kept.

    Raises:
        UserError: ModelNotFound, AccessDenied, TrackingUnavailable or TrackingDenied.
    """
    scheme = scheme_of(uri)
    if scheme == "file":
        folder = Path(uri.removeprefix("file://"))
        if not folder.is_dir():
            raise UserError(
                "ModelNotFound", f"{uri} is not a folder; check the path, and that the volume holds the model"
            )
        return folder
    if scheme == "hf":
        return _fetch_from_hub(uri, cache_dir)
    folder = cache_dir / hashlib.sha256(f"{tracking_uri} {uri}".encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        marker = folder / "complete"
        if not marker.exists():
            marker.write_text(str(tracking.download(tracking_uri, uri, folder / "files")))
        return Path(marker.read_text())


def _fetch_from_hub(uri: str, cache_dir: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    name, _, revision = uri.removeprefix("hf://").partition("@")
    try:
        return Path(
            snapshot_download(
                name, revision=revision or None, cache_dir=cache_dir / "hub", allow_patterns=_HUB_PATTERNS
            )
        )
    except GatedRepoError as error:
        raise UserError(
            "AccessDenied", f"{uri} is gated; put a token that may read it into secretRef as HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError("ModelNotFound", f"{uri} does not exist on the hub, or needs a token as HF_TOKEN") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError("ModelNotFound", f"{uri} cannot be loaded from the hub: {first}") from error
