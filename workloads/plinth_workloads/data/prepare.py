"""From a run document to its tokenizer and its data as tokens on this machine's disk, made once for all processes."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from plinth_api.run import RunSource, TrainRun
from plinth_workloads.data.loader import Batcher
from plinth_workloads.data.packing import EpochPlan, shuffled_documents
from plinth_workloads.data.recipe import DataRecipe
from plinth_workloads.data.token_store import IntArray, TokenizedDocument, TokenStore, write_token_store
from plinth_workloads.errors import UserError

logger = logging.getLogger(__name__)

_VALIDATION_SALT = 7919
"""Keeps the draw of validation documents apart from the shuffles of the epochs, which use the same seed."""


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Everything the loaders read.

    Attributes:
        recipe: How documents become rows and rows become batches.
        tokenizer: The model's tokenizer, or its image processor.
        store: Training documents, and validation documents where they are a fraction of them.
        train_documents: Which documents of `store` are trained on.
        validation_store: The validation documents' store, or None.
        validation_documents: Which documents of `validation_store` are measured on.
    """

    recipe: DataRecipe
    tokenizer: Any
    store: TokenStore
    train_documents: IntArray
    validation_store: TokenStore | None
    validation_documents: IntArray

    @property
    def fingerprint(self) -> str:
        """Hash of training and validation tokens."""
        parts = [self.store.fingerprint, self.validation_store.fingerprint if self.validation_store else ""]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]

    @property
    def training_rows(self) -> Batcher:
        """What makes batches of the training documents."""
        return self.recipe.batcher(self.tokenizer, self.store, self.train_documents)

    @property
    def validation_rows(self) -> Batcher:
        """What makes batches of the validation documents."""
        assert self.validation_store is not None
        return self.recipe.batcher(self.tokenizer, self.validation_store, self.validation_documents)


def prepare_data(run: TrainRun, base_folder: Path | None, recipe: DataRecipe | None = None) -> PreparedData:
    """Read, tokenize and split the data of a run, or open what an earlier call has made.

    Args:
        run: The run document.
        base_folder: Folder of the model that the run starts from, for its tokenizer; None where it trains its own.
        recipe: The objective's; that of a causal language model when left out.

    Raises:
        UserError: DatasetNotFound, InvalidData or ModelLoadFailed, before anything is trained.
    """
    recipe = recipe or DataRecipe(run)
    cache = Path(run.work_dir) / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "prepare.lock"):
        tokenizer = recipe.processor(base_folder, cache)
        store = _store(recipe, run.data.train, tokenizer, cache, "train")
        held_out_sources = run.data.validation
        validation = _store(recipe, held_out_sources, tokenizer, cache, "validation") if held_out_sources else None
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
    data = PreparedData(recipe, tokenizer, store, train_documents, validation, validation_documents)
    recipe.check(data)
    return data


def plan_training_epoch(run: TrainRun, data: PreparedData, epoch: int) -> EpochPlan:
    """The rows of one training epoch."""
    documents = data.train_documents
    weights = [run.data.train[source].weight for source in data.store.source_of[documents]]
    drawn = shuffled_documents(documents, weights, run.training.seed, epoch)
    return data.recipe.plan(drawn, data.store, seed=epoch)


def plan_validation(data: PreparedData) -> EpochPlan:
    """The rows of the validation examples, always the same."""
    assert data.validation_store is not None
    return data.recipe.plan(data.validation_documents, data.validation_store, seed=0)


def _store(
    recipe: DataRecipe,
    sources: Sequence[RunSource],
    tokenizer: Any,
    cache: Path,
    name: str,
) -> TokenStore:
    run = recipe.run
    described = [[source.to_wire() for source in sources], run.data.to_wire(), run.training.sequence_length]
    identity = json.dumps(described + ([run.objective_settings] if run.objective_settings else []))
    folder = cache / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    if not folder.exists():
        documents = (_tokenized(recipe, source, tokenizer, cache) for source in sources)
        write_token_store(folder, documents, recipe.vocabulary_size(tokenizer))
    return TokenStore(folder)


def _tokenized(recipe: DataRecipe, source: RunSource, tokenizer: Any, cache: Path) -> Iterator[TokenizedDocument]:
    run = recipe.run
    dropped = 0
    for document in recipe.documents(source, tokenizer, cache):
        if recipe.learns_something(document):
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
