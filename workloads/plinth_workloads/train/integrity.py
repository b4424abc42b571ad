"""Whether the files of a checkpoint are what was written: torn, cut off, changed or missing ones are found by checksum.

`checksums.sha256` lies beside the files and is what `sha256sum --check` reads.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from plinth_workloads.train.parallel import Workers

CHECKSUMS = "checksums.sha256"
STATE = "state.json"
"""Everything of a checkpoint that is not a tensor; where it is, the checkpoint is complete."""

_SHARDS = "*.safetensors"


def write_checksums(folder: Path, shards: Mapping[str, str], others: Mapping[str, bytes]) -> None:
    """Write `checksums.sha256`.

    Args:
        folder: Of the checkpoint.
        shards: Checksums of the shards, by name.
        others: Contents of the other files, by name.
    """
    checksums = {**shards, **{name: hashlib.sha256(content).hexdigest() for name, content in others.items()}}
    (folder / CHECKSUMS).write_text("".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums)))


def find_damage(folder: Path, workers: Workers) -> str | None:
    """What is wrong with a checkpoint's files, None where each is as it was written.

    Every process calls this; they share the files, and all get the same answer. It begins with the name of a file.
    """
    own = None
    try:
        expected = _read_checksums(folder)
    except (OSError, ValueError) as error:
        own = f"{CHECKSUMS} cannot be read: {error}"
    else:
        for name in sorted(expected)[workers.rank :: workers.world_size]:
            own = own or _find_change(folder / name, expected[name])
        unexpected = sorted({path.name for path in folder.glob(_SHARDS)} - set(expected))
        own = own or (f"{unexpected[0]} was not written with it" if unexpected else None)
    return next((found for found in workers.gather(own) if found is not None), None)


def _read_checksums(folder: Path) -> dict[str, str]:
    expected = {}
    for line in (folder / CHECKSUMS).read_text().splitlines():
        checksum, separator, name = line.partition("  ")
        if not separator or Path(name).name != name:
            raise ValueError(f"a line of it is {line!r}")
        expected[name] = checksum
    return expected


def _find_change(path: Path, expected: str) -> str | None:
    try:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None if checksum == expected else f"{path.name} ({size:,} bytes) is not as it was written"
