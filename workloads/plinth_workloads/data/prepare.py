"""From a run document to its tokenizer and its data as tokens on this machine's disk, made once for all processes."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from plinth_api.run import RunSource, TrainRun
from plinth_workloads.data.formats import Example, read_examples
from plinth_workloads.data.packing import ConcatenatedRows, EpochPlan, WholeDocumentRows, shuffled_documents
from plinth_workloads.data.sources import load_source
from plinth_workloads.data.token_store import IntArray, TokenizedDocument, TokenStore, write_token_store
from plinth_workloads.data.tokenize import tokenize_examples
from plinth_workloads.errors import UserError
from plinth_workloads.models.tokenizers import load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_VALIDATION_SALT = 7919
"""Keeps the draw of validation documents apart from the shuffles of the epochs, which use the same seed."""


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Everything the loaders read.

    Attributes:
        tokenizer: The model's tokenizer.
        store: Training documents, and validation documents where they are a fraction of them.
        train_documents: Which documents of `store` are trained on.
        validation_store: The validation documents' store, or None.
        validation_documents: Which documents of `validation_store` are measured on.
    """

    tokenizer: "PreTrainedTokenizerBase"
    store: TokenStore
    train_documents: IntArray
    validation_store: TokenStore | None
    validation_documents: IntArray

    @property
    def fingerprint(self) -> str:
        """Hash of training and validation tokens."""
        parts = [self.store.fingerprint, self.validation_store.fingerprint if self.validation_store else ""]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def prepare_data(run: TrainRun, base_folder: Path | None) -> PreparedData:
    """Read, tokenize and split the data of a run, or open what an earlier call has made.

    Args:
        run: The run document.
        base_folder: Folder of the model that the run starts from, for its tokenizer; None where it trains its own.

    Raises:
        UserError: DatasetNotFound, InvalidData or ModelLoadFailed, before anything is trained.
    """
    cache = Path(run.work_dir) / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "prepare.lock"):
        tokenizer = load_tokenizer(
            _tokenizer_folder(run, base_folder, cache), run.model.uri or run.model.tokenizer_uri or run.name
        )
        store = _store(run, run.data.train, tokenizer, cache, "train")
        validation = _store(run, run.data.validation, tokenizer, cache, "validation") if run.data.validation else None
    train_documents, held_out = _split(store, run.data.validation_fraction, run.training.seed)
    if not _num_targets(store, train_documents):
        raise UserError(
            "InvalidData", f"{run.data.train[0].uri}: the training data is empty: it has nothing to learn from"
        )
    if validation is None and run.data.validation_fraction is not None:
        validation, validation_documents = store, held_out
    else:
        validation_documents = np.arange(validation.num_documents if validation else 0)
    if validation is not None and not _num_targets(validation, validation_documents):
        raise UserError("InvalidData", "the validation data is empty: raise its fraction, or give more documents")
    return PreparedData(tokenizer, store, train_documents, validation, validation_documents)


def plan_training_epoch(run: TrainRun, data: PreparedData, epoch: int) -> EpochPlan:
    """The rows of one training epoch."""
    documents = data.train_documents
    weights = [run.data.train[source].weight for source in data.store.source_of[documents]]
    drawn = shuffled_documents(documents, weights, run.training.seed, epoch)
    return _plan(run, drawn, data.store, seed=epoch)


def plan_validation(run: TrainRun, data: PreparedData) -> EpochPlan:
    """The rows of the validation examples, always the same."""
    assert data.validation_store is not None
    return _plan(run, data.validation_documents, data.validation_store, seed=0)


def cuts_documents(run: TrainRun) -> bool:
    """Whether documents are cut to fill rows: plain text in packed rows is, an example with an answer never."""
    return run.training.packing and run.data.task == "pretrain"


def _plan(run: TrainRun, documents: IntArray, store: TokenStore, *, seed: int) -> EpochPlan:
    if cuts_documents(run):
        return ConcatenatedRows(documents, store.lengths, run.training.sequence_length, seed=seed)
    return WholeDocumentRows(
        documents, store.lengths, run.training.sequence_length, packing=run.training.packing, seed=seed
    )


def _tokenizer_folder(run: TrainRun, base_folder: Path | None, cache: Path) -> Path:
    if base_folder is not None:
        return base_folder
    assert run.model.tokenizer_vocab_size is not None
    folder = cache / "tokenizer"
    if not folder.exists():
        texts = (
            example.text or ""
            for source in run.data.train
            for example in read_examples(load_source(source, cache / "datasets"), source, run.data)
        )
        partial = cache / "tokenizer.tmp"
        train_tokenizer(texts, run.model.tokenizer_vocab_size, partial)
        partial.rename(folder)
    return folder


def _store(
    run: TrainRun, sources: Sequence[RunSource], tokenizer: "PreTrainedTokenizerBase", cache: Path, name: str
) -> TokenStore:
    identity = json.dumps([[source.to_wire() for source in sources], run.data.to_wire(), run.training.sequence_length])
    folder = cache / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    if not folder.exists():
        documents = (_tokenized(run, source, tokenizer, cache) for source in sources)
        write_token_store(folder, documents, len(tokenizer))
    return TokenStore(folder)


def _tokenized(
    run: TrainRun, source: RunSource, tokenizer: "PreTrainedTokenizerBase", cache: Path
) -> Iterator[TokenizedDocument]:
    examples: Iterator[Example] = read_examples(load_source(source, cache / "datasets"), source, run.data)
    dropped = 0
    for document in tokenize_examples(examples, tokenizer, as_chat=run.data.task == "instruction"):
        if _learns_something(document, run):
            yield document
        else:
            dropped += 1
    if dropped:
        logger.warning(
            "%s: %d examples left out: nothing to learn within %d tokens",
            source.uri,
            dropped,
            run.training.sequence_length,
        )


def _learns_something(document: TokenizedDocument, run: TrainRun) -> bool:
    """Whether a target other than the first token lies within a row; the first token is never predicted."""
    if cuts_documents(run):
        return len(document.ids) > 1
    length = min(len(document.ids), run.training.sequence_length)
    return length > 1 if document.targets is None else any(document.targets[1:length])


def _split(store: TokenStore, fraction: float | None, seed: int) -> tuple[IntArray, IntArray]:
    """Documents to train on and documents held out."""
    documents = np.arange(store.num_documents)
    if fraction is None or store.num_documents < 2:
        return documents, documents[:0]
    held_out = max(1, round(fraction * store.num_documents))
    shuffled = np.random.default_rng([seed, _VALIDATION_SALT]).permutation(documents)
    return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])


def _num_targets(store: TokenStore, documents: IntArray) -> int:
    return int((store.lengths[documents] - 1).clip(min=0).sum())
