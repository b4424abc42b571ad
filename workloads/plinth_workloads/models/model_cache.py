"""Downloaded models on a disk that replicas, jobs and services share, kept by what is in their files.

A download enters once; a folder of hard links to files that are named by their SHA-256 leaves. Two versions with the
same bytes share them, another name for the same source is not downloaded again. Nothing is believed but what has a
manifest, which is written last. Processes of one node, or of several on a network file system with locks, may use it.

    sources/<hash of a name>    which content a URI, or the place behind it, has
    manifests/<content>.json    its files; the time of the last use is that of this file
    contents/<content>/         the folder that is loaded
    files/<sha256>              one file each, however many contents have it
    incoming/<hash>/            downloads under way, whose lock is held
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from plinth_workloads.errors import UserError
from plinth_workloads.models.cache_room import CacheRoom
from plinth_workloads.models.model_load import LoadStep, current_load
from plinth_workloads.models.weight_files import check_weight_file

_LOOK_SECONDS = 0.2
_READ_BYTES = 2**22

_kept: dict[tuple[Path, str], Callable[[], None]] = {}
"""What this process holds to its end, as no load says when it is done with the files."""


@dataclass(frozen=True, slots=True)
class Download:
    """What is not here yet.

    Attributes:
        uri: What the user calls it; for messages.
        source: Names the place that it is at, and with it the content: two URIs of one source are one download.
        sizes: Bytes of each file by its path; empty where the place does not tell.
        into: Writes the files below a new folder, and returns the folder that they are in.
    """

    uri: str
    source: str
    into: Callable[[Path], Path]
    sizes: Mapping[str, int] = field(default_factory=dict)


class ModelCache:
    """A folder of models; several processes may have it at once.

    Args:
        folder: On a file system with hard links and locks.
        max_bytes: What it may hold; None for what the volume has, less a twentieth that is left free where it can be.
    """

    def __init__(self, folder: Path, *, max_bytes: int | None = None) -> None:
        self._folder = folder
        for name in ("sources", "manifests", "contents", "files", "incoming", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._room = CacheRoom(folder, max_bytes=max_bytes, hold=self._hold)
        # For whoever moves files; downloads and hashes go on beside.
        self._moves = FileLock(folder / "locks" / "moves")

    def known(self, name: str) -> Path | None:
        """The folder of what `name`, a URI or a source, was when it was added; None where that is not here."""
        try:
            content = self._source_file(name).read_text()
        except FileNotFoundError:
            return None
        # Held before it is looked for: what is held is not removed.
        release = self._hold(content, exclusive=False)
        if release is None or not (self._folder / "manifests" / f"{content}.json").exists():
            if release is not None:
                release()
            return None
        load = current_load()
        if load is not None:
            load.files.callback(release)
        elif _kept.setdefault((self._folder, content), release) is not release:
            release()
        os.utime(self._folder / "manifests" / f"{content}.json")
        return self._folder / "contents" / content

    def add(self, name: str, download: Download) -> Path:
        """The folder of `name`, downloaded unless its source is here; it stays while the current load goes on.

        Without a current load it stays for as long as the process lives.

        Raises:
            UserError: ModelLoadFailed where it does not fit, or has come damaged; whatever the download raises.
        """
        key = _hash(download.source)
        with FileLock(self._folder / "locks" / f"incoming-{key}"):
            if self.known(download.source) is None:
                content = self._fetched(download, self._folder / "incoming" / key)
                _write(self._source_file(download.source), content)
        content = self._source_file(download.source).read_text()
        _write(self._source_file(name), content)
        found = self.known(name)
        return found if found is not None else self.add(name, download)

    def _fetched(self, download: Download, incoming: Path) -> str:
        """The content that came."""
        total = sum(download.sizes.values())
        # What a process left that was killed; nobody else has this lock.
        shutil.rmtree(incoming, ignore_errors=True)
        with self._moves:
            self._room.make(total, download.uri)
        incoming.mkdir()
        try:
            with _watched(incoming, total):
                folder = download.into(incoming)
            files = _checked(folder, download)
            with self._moves:
                return self._moved(folder, files)
        except Exception as error:
            if _is_full(error):
                raise UserError("ModelLoadFailed", self._room.full(total, download.uri)) from error
            raise
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def _moved(self, folder: Path, files: Mapping[str, str]) -> str:
        content = _hash(json.dumps(files, sort_keys=True))
        target = self._folder / "contents" / content
        manifest = self._folder / "manifests" / f"{content}.json"
        if manifest.exists():
            return content
        shutil.rmtree(target, ignore_errors=True)
        for path, digest in files.items():
            one = self._folder / "files" / digest
            if not one.exists():
                os.replace(folder / path, one)
                # Several contents have it: whoever changed it would change them all.
                one.chmod(0o444)
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(one, target / path)
        _write(manifest, json.dumps(files, indent=1))
        return content

    def _hold(self, content: str, *, exclusive: bool) -> Callable[[], None] | None:
        """What lets go of a content again; None where it is in use, and it is wanted for oneself."""
        handle = os.open(self._folder / "locks" / content, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX | fcntl.LOCK_NB) if exclusive else fcntl.LOCK_SH)
        except BlockingIOError:
            os.close(handle)
            return None
        return lambda: os.close(handle)

    def _source_file(self, name: str) -> Path:
        return self._folder / "sources" / _hash(name)


def _checked(folder: Path, download: Download) -> dict[str, str]:
    """SHA-256 of each file by its path, once all have come whole and are on the disk.

    Raises:
        UserError: ModelLoadFailed, naming the file.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        # The hub's client keeps notes of its own in a hidden folder.
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        size, wanted = path.stat().st_size, download.sizes.get(name)
        if wanted is not None and wanted != size:
            raise UserError(
                "ModelLoadFailed", f"{download.uri}: {name} has come with {size:,} of {wanted:,} bytes; try again"
            )
        if path.suffix == ".safetensors":
            check_weight_file(path, download.uri)
        found[name] = _digest_on_disk(path)
    missing = sorted(set(download.sizes) - set(found))
    if missing:
        raise UserError("ModelLoadFailed", f"{download.uri}: {missing[0]} has not come; try again")
    return found


def _digest_on_disk(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
        os.fsync(file.fileno())
    return digest.hexdigest()


@contextmanager
def _watched(folder: Path, total: int) -> Iterator[None]:
    """Tell the current load how much of a download lies in its folder."""
    load, ended = current_load(), threading.Event()
    if load is None:
        yield
        return

    def look() -> None:
        while not ended.is_set():
            load.tell(LoadStep("fetching", min(_bytes_below(folder), total) if total else 0, total))
            ended.wait(_LOOK_SECONDS)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _is_full(error: BaseException | None) -> bool:
    """Whether a disk that is full is behind an error: clients wrap what their writing raised."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _write(path: Path, text: str) -> None:
    """Write a small file so that it is there as a whole or not at all, also after a power cut."""
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
