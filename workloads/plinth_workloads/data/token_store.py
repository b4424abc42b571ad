"""Tokenized documents on disk: written once, then mapped into memory by every process of the machine."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
_WRITE_BUFFER_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class TokenizedDocument:
    """Token ids of one document; which are to be learned, where not all are; which start a word, where asked."""

    ids: list[int] | npt.NDArray[np.uint8]
    targets: list[bool] | None = None
    word_starts: list[bool] | None = None


class TokenStore:
    """Documents one after another in one array.

    Attributes:
        tokens: Ids of all documents, [num_tokens].
        targets: Which tokens the model is to predict, [num_tokens]; None where it is all of them.
        word_starts: Which tokens start a word, [num_tokens]; None where nobody asked.
        offsets: Where each document starts, [num_documents + 1].
        fingerprint: Hash of the content; equal stores train equal models.
    """

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r") if meta["num_tokens"] else np.zeros(0, np.uint16)
        self.targets = np.load(folder / "targets.npy", mmap_mode="r") if meta["has_targets"] else None
        words = folder / "word_starts.npy"
        self.word_starts = np.load(words, mmap_mode="r") if words.exists() else None
        self.offsets: IntArray = np.load(folder / "offsets.npy")
        self.fingerprint: str = meta["fingerprint"]
        self.source_of: IntArray = np.load(folder / "sources.npy")

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """Tokens of each document, [num_documents]."""
        return np.diff(self.offsets)


def write_token_store(folder: Path, sources: Iterable[Iterable[TokenizedDocument]], vocab_size: int) -> None:
    """Write the documents of all sources; `folder` exists only once everything is in it.

    Args:
        folder: Where the store goes.
        sources: The documents of each source.
        vocab_size: Decides the width of a token on disk.
    """
    partial = folder.with_name(folder.name + ".tmp")
    partial.mkdir(parents=True, exist_ok=True)
    dtype = np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32
    lengths: list[int] = []
    source_of: list[int] = []
    has_targets = False
    digest = hashlib.sha256()
    with (
        (partial / "tokens.raw").open("wb") as tokens,
        (partial / "targets.raw").open("wb") as targets,
        (partial / "word_starts.raw").open("wb") as words,
    ):
        for index, documents in enumerate(sources):
            for document in documents:
                mask = np.ones(len(document.ids), np.bool_) if document.targets is None else np.array(document.targets)
                has_targets |= document.targets is not None
                content = np.array(document.ids, dtype).tobytes()
                digest.update(content)
                digest.update(mask.tobytes())
                tokens.write(content)
                targets.write(mask.tobytes())
                starts = np.array(document.word_starts or (), np.bool_).tobytes()
                digest.update(starts)
                words.write(starts)
                lengths.append(len(document.ids))
                source_of.append(index)
    np.save(partial / "offsets.npy", np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64))
    np.save(partial / "sources.npy", np.array(source_of, np.int64))
    digest.update(np.array(lengths, np.int64).tobytes())
    _to_npy(partial / "tokens.raw", partial / "tokens.npy", np.dtype(dtype))
    if has_targets:
        _to_npy(partial / "targets.raw", partial / "targets.npy", np.dtype(np.bool_))
    (partial / "targets.raw").unlink(missing_ok=True)
    _to_npy(partial / "word_starts.raw", partial / "word_starts.npy", np.dtype(np.bool_))
    meta = {"num_tokens": sum(lengths), "has_targets": has_targets, "fingerprint": digest.hexdigest()[:16]}
    (partial / "meta.json").write_text(json.dumps(meta))
    partial.rename(folder)


def _to_npy(raw: Path, target: Path, dtype: np.dtype[np.generic]) -> None:
    """Give a raw file the header of an .npy, copying it in pieces."""
    count = raw.stat().st_size // dtype.itemsize
    if count:
        array = np.lib.format.open_memmap(target, mode="w+", dtype=dtype, shape=(count,))
        with raw.open("rb") as file:
            start = 0
            while chunk := file.read(_WRITE_BUFFER_TOKENS * dtype.itemsize):
                piece = np.frombuffer(chunk, dtype)
                array[start : start + len(piece)] = piece
                start += len(piece)
        array.flush()
    raw.unlink()
