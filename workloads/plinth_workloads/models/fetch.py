"""From a model's URI to a folder on this machine's disk: the place it is at is asked, the cache has the files."""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from plinth_api.uris import scheme_of
from plinth_workloads import tracking_files
from plinth_workloads.errors import UserError
from plinth_workloads.models.model_cache import Download, ModelCache
from plinth_workloads.models.model_load import current_load

_HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def fetch_model(uri: str, *, tracking_uri: str, cache_dir: Path) -> Path:
    """The folder with the model's files, downloaded once.

    Args:
        uri: models:/name/3, runs:/id/path, hf://org/name@revision or file:///path.
        tracking_uri: The MLflow that models:/ and runs:/ speak of.
        cache_dir: Where downloads are kept, by whichever processes.

    Raises:
        UserError: ModelNotFound, ModelLoadFailed, AccessDenied, TrackingUnavailable or TrackingDenied.
    """
    scheme = scheme_of(uri)
    if scheme == "file":
        folder = Path(uri.removeprefix("file://"))
        if not folder.is_dir():
            raise UserError(
                "ModelNotFound", f"{uri} is not a folder; check the path, and that the volume holds the model"
            )
        return folder
    load = current_load()
    cache = ModelCache(cache_dir, max_bytes=load.max_cache_bytes if load else None)
    if scheme == "hf":
        return _from_hub(uri, cache)
    # A version, or the files of a run, stay what they are: MLflow need not be asked again.
    name = f"{tracking_uri} {uri}"
    return cache.known(name) or _from_mlflow(uri, tracking_uri, name, cache)


def _from_mlflow(uri: str, tracking_uri: str, name: str, cache: ModelCache) -> Path:
    files = tracking_files.remote_files(tracking_uri, uri)

    def into(folder: Path) -> Path:
        return tracking_files.download(tracking_uri, uri, folder)

    return cache.add(name, Download(uri, f"{tracking_uri} {files.source}", into, files.sizes))


def _from_hub(uri: str, cache: ModelCache) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    model, _, revision = uri.removeprefix("hf://").partition("@")
    with _hub_errors(uri):
        try:
            info = HfApi().model_info(model, revision=revision or None, files_metadata=True)
        except (GatedRepoError, RepositoryNotFoundError):
            raise
        except (HfHubHTTPError, OSError):
            # What was there the last time does where the hub is away.
            if (folder := cache.known(uri)) is not None:
                return folder
            raise
        sizes = {
            one.rfilename: one.size
            for one in info.siblings or ()
            if one.size is not None and any(fnmatch(one.rfilename, pattern) for pattern in _HUB_PATTERNS)
        }

        def into(folder: Path) -> Path:
            return Path(
                snapshot_download(model, revision=info.sha, local_dir=folder / "files", allow_patterns=_HUB_PATTERNS)
            )

        return cache.add(uri, Download(uri, f"hf://{model}@{info.sha}", into, sizes))


@contextmanager
def _hub_errors(uri: str) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence.

    Raises:
        UserError: AccessDenied or ModelNotFound.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            "AccessDenied", f"{uri} is gated; put a token that may read it into secretRef as HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError("ModelNotFound", f"{uri} does not exist on the hub, or needs a token as HF_TOKEN") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError("ModelNotFound", f"{uri} cannot be loaded from the hub: {first}") from error
