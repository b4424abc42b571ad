"""From a source's URI to its rows: files of several formats through `datasets`, anywhere that fsspec reaches, or a hub.

A file that cannot be read is named with the line, where the format has lines.
"""

import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from plinth_api.run import RunSource
from plinth_workloads.errors import UserError
from plinth_workloads.object_stores import explained

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_ENDINGS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
    ".arrow": "arrow",
    ".txt": "txt",
}
_COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
_BUILDERS = {"jsonl": "json", "parquet": "parquet", "csv": "csv", "arrow": "arrow", "txt": "text"}


def load_source(source: RunSource, cache_dir: Path) -> "Dataset":
    """The rows of one source.

    Args:
        source: Where the rows are; a folder stands for all files of a known format below it.
        cache_dir: Where `datasets` keeps its Arrow files.

    Raises:
        UserError: DatasetNotFound or AccessDenied for what cannot be opened, InvalidData for what cannot be decoded.
    """
    import datasets

    datasets.disable_progress_bars()
    if source.uri.startswith("hf://"):
        return _load_from_hub(source, cache_dir)
    files = source_files(source.uri)
    file_format = source.format or _common_format(source.uri, files)
    options: dict[str, Any] = {"sample_by": "document"} if file_format == "txt" else {}
    try:
        return datasets.load_dataset(
            _BUILDERS[file_format], data_files={"train": files}, split="train", cache_dir=str(cache_dir), **options
        )
    except (
        datasets.exceptions.DatasetGenerationError,
        datasets.exceptions.DataFilesNotFoundError,
        ValueError,
    ) as error:
        raise UserError("InvalidData", _explain(files, file_format, error)) from error


def source_files(uri: str, endings: Collection[str] | None = None) -> list[str]:
    """Every file that a URI stands for, in the order of their names: a file, a glob, or a folder with all below it.

    Of a folder only files of a known format count, or those with one of `endings`.

    Raises:
        UserError: DatasetNotFound where there is none, AccessDenied where the storage refuses.
    """
    try:
        with explained(uri, "the source's secretRef", "DatasetNotFound"):
            filesystem, path = fsspec.core.url_to_fs(uri)
            if any(wildcard in path for wildcard in "*?["):
                paths = filesystem.glob(path)
            elif filesystem.isdir(path):
                paths = [found for found in filesystem.find(path) if _counts(found, endings)]
            else:
                paths = [path] if filesystem.exists(path) else []
    except ImportError as error:
        raise UserError("DatasetNotFound", f"{uri} cannot be opened: {error}") from error
    files = [filesystem.unstrip_protocol(found) for found in sorted(paths) if not filesystem.isdir(found)]
    if not files:
        raise UserError("DatasetNotFound", f"{uri} matches no file; check the path, and that the volume holds the data")
    return [found.removeprefix("file://") if found.startswith("file://") else found for found in files]


def _counts(path: str, endings: Collection[str] | None) -> bool:
    return _format_of(path) is not None if endings is None else Path(path).suffix.lower() in endings


def _format_of(path: str) -> str | None:
    name = Path(path).name.lower()
    for compression in _COMPRESSIONS:
        name = name.removesuffix(compression)
    return _ENDINGS.get(Path(name).suffix)


def _common_format(uri: str, files: Sequence[str]) -> str:
    formats = {_format_of(path) for path in files}
    if len(formats) == 1 and (file_format := formats.pop()) is not None:
        return file_format
    raise UserError(
        "InvalidData",
        f"{uri} holds files of no single known format ({', '.join(sorted(Path(path).name for path in files)[:3])}); "
        "name one of jsonl, parquet, arrow, csv, txt as the source's format",
    )


def _load_from_hub(source: RunSource, cache_dir: Path) -> "Dataset":
    import datasets

    name, _, revision = source.uri.removeprefix("hf://").removeprefix("datasets/").partition("@")
    try:
        return datasets.load_dataset(
            name, split=source.split or "train", revision=revision or None, cache_dir=str(cache_dir)
        )
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, OSError) as error:
        raise UserError(
            "DatasetNotFound",
            f"{source.uri} cannot be loaded from the hub: {_first_line(error)}; check the name and the network",
        ) from error
    except ValueError as error:
        raise UserError("InvalidData", f"{source.uri}: {_first_line(error)}") from error


def _explain(files: Sequence[str], file_format: str, error: Exception) -> str:
    """What is wrong with the files, by reading them once more until the first one that fails."""
    for path in files:
        if problem := _problem_in(path, file_format):
            return problem
    cause = error.__cause__ or error
    return f"{files[0]} (and {len(files) - 1} more) cannot be read as {file_format}: {_first_line(cause)}"


def _problem_in(path: str, file_format: str) -> str | None:
    try:
        if file_format == "jsonl":
            return _json_problem(path)
        if file_format in ("csv", "txt"):
            with fsspec.open(path, "rt", encoding="utf-8", compression="infer") as lines:
                for _ in lines:
                    pass
        elif file_format == "parquet":
            import pyarrow.parquet

            with fsspec.open(path, "rb") as file:
                pyarrow.parquet.ParquetFile(file).metadata  # noqa: B018 - reading the footer is the check
    except UnicodeDecodeError as error:
        return f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} does not decode; convert the file"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read as {file_format}: {_first_line(error)}"
    return None


def _json_problem(path: str) -> str | None:
    with fsspec.open(path, "rb", compression="infer") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                return f"{path} line {number} is not JSON: {_first_line(error)}; mend or remove the line"
            if not isinstance(row, dict):
                return f"{path} line {number} is not an object but {type(row).__name__}; each line must be an object"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
