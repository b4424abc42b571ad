"""Whether a model's files of weights can be loaded, told from their names and headers before anything is read.

Enters: a folder. Leaves: nothing, or the sentence that names the file. Format:
https://github.com/huggingface/safetensors#format
"""

import json
import struct
from pathlib import Path

from plinth_workloads.errors import UserError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LENGTH = struct.Struct("<Q")
_MOST_HEADER_BYTES = 100_000_000
"""The bound of safetensors itself."""


def check_weights(folder: Path, uri: str) -> int:
    """Bytes of a folder's weights, all of which are there and whole.

    Raises:
        UserError: ModelLoadFailed: there are none, none but pickles, or a file is missing or damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise UserError(
                "ModelLoadFailed",
                f"{uri} has no *.safetensors, and {pickles[0]} is not loaded: a pickle may run any program; load it "
                "where you trust it, and save it with model.save_pretrained",
            )
        raise UserError("ModelLoadFailed", f"{uri} has no *.safetensors; other formats of weights are not loaded")
    index = folder / "model.safetensors.index.json"
    if index.exists() and not (folder / "model.safetensors").exists():
        names = set(_map_of(index, uri).values())
        missing = sorted(name for name in names if not (folder / name).exists())
        if missing:
            raise UserError(
                "ModelLoadFailed",
                f"{uri}: {missing[0]} is missing, one of {len(names)} files of its weights; copy the model anew",
            )
        files = [folder / name for name in sorted(names)]
    for path in files:
        check_weight_file(path, uri)
    return sum(path.stat().st_size for path in files)


def check_weight_file(path: Path, uri: str) -> None:
    """Return where a safetensors file has as many bytes as its header says.

    Raises:
        UserError: ModelLoadFailed, naming the file.
    """
    size = path.stat().st_size
    try:
        wanted = _wanted_bytes(path)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UserError(
            "ModelLoadFailed", f"{uri} has a damaged safetensors file: {path.name} ({size:,} bytes) has no header"
        ) from error
    if wanted != size:
        raise UserError(
            "ModelLoadFailed",
            f"{uri} has a damaged safetensors file: {path.name} has {size:,} bytes, and its header says {wanted:,}; "
            "copy it anew",
        )


def _wanted_bytes(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > _MOST_HEADER_BYTES:
            raise ValueError(length)
        header = json.loads(file.read(length))
    ends = (tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
    return _LENGTH.size + int(length) + max(ends, default=0)


def _map_of(index: Path, uri: str) -> dict[str, str]:
    try:
        weights: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("ModelLoadFailed", f"{uri}: {index.name} is damaged; copy it anew") from error
    return weights
