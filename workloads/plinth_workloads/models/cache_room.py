"""Room in a cache of models: what was used longest ago goes first, and never what is in use.

Enters: how much is to come. Leaves: a cache in which it fits, or a sentence with the numbers. Whoever calls has the
lock of those that move files.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from plinth_api.quantity import told_bytes
from plinth_workloads.errors import UserError

_LEFT_FREE = 0.05
"""Of the volume, as far as that can be had by removing models: a full disk of a node evicts its pods."""


class _Hold(Protocol):
    def __call__(self, content: str, *, exclusive: bool) -> Callable[[], None] | None: ...


class CacheRoom:
    """What may be taken out of a cache, and how much there is.

    Args:
        folder: Of the cache.
        max_bytes: What it may hold; None for what its volume has.
        hold: Takes the lock of a content; None where it is in use.
    """

    def __init__(self, folder: Path, *, max_bytes: int | None, hold: _Hold) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._hold = hold

    def make(self, num_bytes: int, uri: str) -> None:
        """Remove what nobody finishes, then models from the one that was used longest ago, until there is room.

        Raises:
            UserError: ModelLoadFailed where there is too little, whatever is removed.
        """
        self._sweep()
        oldest_first = self._by_last_use()
        while self._lacks(num_bytes, with_reserve=True) and (manifest := next(oldest_first, None)):
            self._remove(manifest)
        if self._lacks(num_bytes, with_reserve=False):
            raise UserError("ModelLoadFailed", self.full(num_bytes, uri))

    def full(self, num_bytes: int, uri: str) -> str:
        """The sentence for a model that does not fit."""
        free, used = self._free(), self._used()
        needs = f"{uri} needs {told_bytes(num_bytes)}" if num_bytes else f"{uri} does not fit"
        bound = f", of {told_bytes(self._max_bytes)} that it may hold" if self._max_bytes else ""
        return (
            f"{needs} in the model cache {self._folder}: {told_bytes(free)} of the disk are free, and "
            f"{told_bytes(used)} are models in use{bound}; give it a larger volume, or serve fewer models with it"
        )

    def _lacks(self, num_bytes: int, *, with_reserve: bool) -> bool:
        if self._max_bytes is not None and self._used() + num_bytes > self._max_bytes:
            return True
        reserve = int(shutil.disk_usage(self._folder).total * _LEFT_FREE) if with_reserve else 0
        return self._free() < num_bytes + reserve

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free

    def _used(self) -> int:
        return sum(path.stat().st_size for path in (self._folder / "files").iterdir())

    def _by_last_use(self) -> Iterator[Path]:
        manifests = (self._folder / "manifests").glob("*.json")
        return iter(sorted(manifests, key=lambda path: path.stat().st_mtime_ns))

    def _remove(self, manifest: Path) -> None:
        release = self._hold(manifest.stem, exclusive=True)
        if release is None:
            return
        try:
            # First: what has no manifest is not there, wherever this is cut off.
            manifest.unlink()
            shutil.rmtree(self._folder / "contents" / manifest.stem)
            self._drop_unshared()
        finally:
            release()

    def _sweep(self) -> None:
        """Remove what processes left that were killed."""
        complete = {path.stem for path in (self._folder / "manifests").glob("*.json")}
        for folder in (self._folder / "contents").iterdir():
            if folder.name not in complete:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in (self._folder / "incoming").iterdir():
            with suppress(Timeout), FileLock(self._folder / "locks" / f"incoming-{folder.name}", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        self._drop_unshared()

    def _drop_unshared(self) -> None:
        for path in (self._folder / "files").iterdir():
            if path.stat().st_nlink == 1:
                path.unlink()
