"""Checkpoints in an object store.

An object store has no folder that could be renamed at once. A checkpoint there counts from the moment that its
`state.json` is uploaded, which is the last file; it is removed in the opposite order.
"""

import re
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plinth_workloads.object_stores import explained, open_store
from plinth_workloads.train.integrity import CHECKSUMS, STATE

_STEP = re.compile(r"(?<=/)step-(\d+)$")
_PROBE = ".writable"
_PART_BYTES = 8 * 1024 * 1024
_DAMAGED = "checksums mismatch"
"""How the client of S3 says that an object is not what was once sent."""


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A complete checkpoint in a store.

    Attributes:
        step: Of the training.
        path: Of its files, without the scheme.
        uri: The same with the scheme.
    """

    step: int
    path: str
    uri: str


class ObjectStore:
    """The checkpoints below one URI.

    Attributes:
        uri: s3://bucket/path, gs://..., abfs://...
        moved_bytes: Sent and received so far, for whoever watches.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.moved_bytes = 0
        with self._explained():
            self._files, self._root = open_store(self.uri)

    def complete(self) -> list[StoredCheckpoint]:
        """The complete checkpoints below the URI, the one with the most steps first.

        Raises:
            UserError: AccessDenied or CheckpointFailed where the store does not say.
        """
        with self._explained():
            paths = [found.path for found in self._find(self._root) if found.path.endswith(f"/{STATE}")]
        stored = []
        for path in paths:
            folder = path.rpartition("/")[0]
            if name := _STEP.search(folder):
                uri = f"{self.uri}{folder.removeprefix(self._root)}"
                stored.append(StoredCheckpoint(int(name[1]), folder, uri))
        return sorted(stored, key=lambda checkpoint: checkpoint.step, reverse=True)

    def check(self) -> None:
        """Write something, remove it and list what there is, as every checkpoint will.

        Raises:
            UserError: AccessDenied or CheckpointFailed where that is not possible.
        """
        with self._explained():
            path = f"{self._root}/{_PROBE}"
            with self._files.open_output_stream(path) as target:
                target.write(b"plinth")
            self._files.delete_file(path)
        self.complete()

    def upload(self, folder: Path, names: Collection[str]) -> None:
        """Send files of a checkpoint's folder; what was there under these names is replaced."""
        for name in names:
            with (folder / name).open("rb") as file, self._files.open_output_stream(self._path(folder, name)) as target:
                while part := file.read(_PART_BYTES):
                    target.write(part)
                    self.moved_bytes += len(part)

    def begin(self, folder: Path) -> None:
        """Remove a checkpoint of this step, of which another one takes the place: it may have had more shards."""
        self._remove([found.path for found in self._find(self._path(folder))])

    def complete_upload(self, folder: Path, step: int, keep: int) -> None:
        """Let a checkpoint count whose shards are there; the newest `keep` up to its step stay, nothing else does.

        What is of a later step or not complete is what a run had that ended, and has now been overtaken.
        """
        self.upload(folder, [CHECKSUMS])
        self.upload(folder, [STATE])
        kept = [found.path for found in self.complete() if found.step <= step][:keep]
        paths = [found.path for found in self._find(self._root) if _STEP.search(found.path.rpartition("/")[0])]
        self._remove([path for path in paths if path.rpartition("/")[0] not in kept])

    def download(self, folder: Path, rank: int, world_size: int) -> None:
        """Fetch this process's share of the files below the URI into a folder.

        Raises:
            UserError: AccessDenied or CheckpointFailed.
        """
        with self._explained():
            paths = sorted(found.path for found in self._find(self._root))
            folder.mkdir(parents=True, exist_ok=True)
            for path in paths[rank::world_size]:
                try:
                    self._fetch(path, folder / path.rpartition("/")[2])
                except OSError as error:
                    # What arrived stays, and is found to be damaged like a file of a folder.
                    if _DAMAGED not in str(error):
                        raise

    def _remove(self, paths: Collection[str]) -> None:
        # What lets a checkpoint count goes first.
        for path in sorted(paths, key=lambda path: not path.endswith(f"/{STATE}")):
            self._files.delete_file(path)

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self.uri, "spec.checkpoint.secretRef", "CheckpointFailed")

    def _fetch(self, path: str, target: Path) -> None:
        with self._files.open_input_stream(path) as source, target.open("wb") as file:
            while part := source.read(_PART_BYTES):
                file.write(part)
                self.moved_bytes += len(part)

    def _path(self, folder: Path, name: str = "") -> str:
        return f"{self._root}/{folder.name}" + (f"/{name}" if name else "")

    def _find(self, path: str) -> list[Any]:
        from pyarrow.fs import FileSelector, FileType

        found = self._files.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
        return [info for info in found if info.type == FileType.File]
