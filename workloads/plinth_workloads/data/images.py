"""From a source's URI to its images: files below a folder, or a column of a table."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
import numpy.typing as npt

from plinth_api.run import RunSource
from plinth_workloads.data.sources import load_source, source_files
from plinth_workloads.errors import UserError
from plinth_workloads.models.image_processor import ImageProcessor

_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})

Pixels = npt.NDArray[np.uint8]


def read_images(
    source: RunSource, columns: Mapping[str, str], processor: ImageProcessor, cache_dir: Path
) -> Iterator[Pixels]:
    """The images of a source, [channels, size, size] each.

    Raises:
        UserError: DatasetNotFound or AccessDenied for what cannot be opened; InvalidData, with the file or the row, for
            an image that does not decode.
    """
    if source.format == "imageFolder":
        for path in source_files(source.uri, _ENDINGS):
            with fsspec.open(path, "rb") as file:
                yield _decoded(file, path, processor)
        return
    rows, column = load_source(source, cache_dir), columns.get("image", "image")
    if column not in rows.column_names:
        raise UserError(
            "InvalidData",
            f"{source.uri} has no column {column}; it has {', '.join(rows.column_names)}: name the one to use in "
            "spec.data.columns.image, or set the source's format to imageFolder",
        )
    for number, row in enumerate(_undecoded(rows.select_columns([column]), column), start=1):
        where = f"{source.uri} row {number}, column {column}"
        value = row[column]
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise UserError("InvalidData", f"{where}: must hold the bytes of an image file")
        yield _decoded(io.BytesIO(content), where, processor)


def _decoded(file: IO[bytes], where: str, processor: ImageProcessor) -> Pixels:
    try:
        return processor.read(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(
            "InvalidData", f"{where} is no image that can be decoded ({error}); mend it, or take it out"
        ) from error


def _undecoded(rows: Any, column: str) -> Any:
    """The rows with files as bytes: we decode them ourselves, to name the one that fails."""
    import datasets

    if isinstance(rows.features[column], datasets.Image):
        return rows.cast_column(column, datasets.Image(decode=False))
    return rows
