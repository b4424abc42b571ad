"""Distributed checkpoints: written aside while training goes on, completed by one rename, the last few kept.

A checkpoint is a folder `step-<n>` of safetensors shards (torch.distributed.checkpoint's Hugging Face storage, which
needs no pickle), their checksums, and `state.json` with everything that is not a tensor. A folder with anything behind
the number never counts: `*.tmp` is not complete, `*.damaged` was set aside.
"""

import concurrent.futures
import contextlib
import errno
import json
import os
import re
import shutil
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict

from plinth_workloads.errors import UserError
from plinth_workloads.train.integrity import CHECKSUMS, STATE, write_checksums
from plinth_workloads.train.object_store import ObjectStore
from plinth_workloads.train.parallel import Workers
from plinth_workloads.train.shards import ShardWriter
from plinth_workloads.train.staging import HostBuffers

_DAMAGED = ".damaged"
_COMPLETE = re.compile(r"step-(\d+)")
_NO_SPACE = {errno.ENOSPC: "no space is left", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file may not grow"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        step: Of the training.
        folder: Of its files.
        stored_at: Its URI in an object store, of which the folder is a copy; empty where there is none.
    """

    step: int
    folder: Path
    stored_at: str = ""

    @property
    def uri(self) -> str:
        """file:///..., s3://..."""
        return self.stored_at or f"file://{self.folder}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCheckpoint(Checkpoint):
    """A checkpoint that this process has just saved.

    Attributes:
        stall_seconds: How long `save` held the training up.
        seconds: From the call of `save` until the checkpoint was complete.
    """

    stall_seconds: float
    seconds: float


def complete_checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete checkpoints in a folder or in the folders below it, the one with the most steps first."""
    found = [
        Checkpoint(int(name[1]), state.parent)
        for state in folder.glob(f"**/step-*/{STATE}")
        if (name := _COMPLETE.fullmatch(state.parent.name))
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The complete checkpoint with the most steps in a folder or in the folders below it."""
    return next(iter(complete_checkpoints(folder)), None)


def set_aside(checkpoint: Checkpoint) -> None:
    """Let a damaged checkpoint count no longer; it is removed when the run has passed its step."""
    aside = checkpoint.folder.with_name(checkpoint.folder.name + _DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    # Where the folder cannot be written to, nothing can be saved either, and that will be told.
    with contextlib.suppress(OSError):
        checkpoint.folder.rename(aside)


class Checkpointer:
    """The checkpoints of one run; every process makes one and calls the same methods in the same order."""

    def __init__(self, folder: Path, keep: int, workers: Workers, store: ObjectStore | None = None) -> None:
        """Take where checkpoints are.

        Args:
            folder: Where they are written; all processes see it.
            keep: So many stay.
            workers: This process among the others.
            store: Where they are sent and stay; the folder then has the newest only.
        """
        self.folder = folder
        self._store = store
        self._keep = keep
        self._workers = workers.with_own_group()
        self._buffers = HostBuffers()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._saves: deque[Future[SavedCheckpoint]] = deque()
        # What DCP says of one process alone. A filter for the moment only would be one for all threads.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")

    def newest(self) -> Checkpoint | None:
        """The checkpoint to go on from; one that is being written is waited for."""
        concurrent.futures.wait(self._saves)
        newest = newest_checkpoint(self.folder)
        return newest and replace(newest, stored_at=self._stored_at(newest.folder))

    @property
    def moved_bytes(self) -> int:
        """Sent to the object store and fetched from it so far."""
        return self._store.moved_bytes if self._store else 0

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        state: Mapping[str, Any],
    ) -> None:
        """Copy tensors and `state`, and write them in the background; waits for the save before this one.

        Raises:
            UserError: CheckpointFailed, in every process, where the save before this one failed.
        """
        started = time.perf_counter()
        if self._saves:
            self._saves[-1].result()
        document = json.dumps({**state, "step": step})
        copies = self._buffers.copy(state_tensors(model, optimizers))
        stall = time.perf_counter() - started

        def write() -> SavedCheckpoint:
            folder = self._write(step, copies, document)
            return SavedCheckpoint(
                step,
                folder,
                self._stored_at(folder),
                stall_seconds=stall,
                seconds=time.perf_counter() - started,
            )

        self._saves.append(self._thread.submit(write))

    @property
    def has_failed(self) -> bool:
        """Whether a save failed in this process, of which `saved` has not told yet."""
        return any(save.done() and save.exception() is not None for save in self._saves)

    def saved(self, *, wait: bool = False) -> Iterator[SavedCheckpoint]:
        """The checkpoints that are complete since this was last read.

        Args:
            wait: Wait for what is being written.

        Raises:
            UserError: CheckpointFailed for a save that failed, in every process; earlier checkpoints are as they were.
        """
        while self._saves and (wait or self._saves[0].done()):
            yield self._saves.popleft().result()

    def load(
        self, checkpoint: Checkpoint, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
    ) -> dict[str, Any]:
        """Load tensors in place.

        Returns:
            The state that was given to `save`, with `step`.

        Raises:
            UserError: CheckpointFailed where it does not fit the model.
        """
        tensors = state_tensors(model, optimizers)
        try:
            load_state_dict(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint.folder)))
        except (CheckpointException, RuntimeError, ValueError, KeyError, OSError) as error:
            raise UserError(
                "CheckpointFailed",
                f"{checkpoint.folder} cannot be loaded into this model: {_cause(error)}; "
                "where it is of another model, name another folder in spec.checkpoint.uri, or remove this one",
            ) from error
        state: dict[str, Any] = json.loads((checkpoint.folder / STATE).read_text())
        return state

    def _write(self, step: int, tensors: dict[str, Tensor], document: str) -> Path:
        target = self.folder / f"step-{step:08d}"
        partial = target.with_suffix(".tmp")
        shards: dict[str, str] = {}
        problem = self._attempt(lambda: _make_empty(partial), in_all=False)
        if problem is None:
            problem = self._attempt(lambda: shards.update(self._write_shards(partial, tensors)))
        own = list(shards)
        if problem is None:
            shards = {name: checksum for part in self._workers.gather(shards) for name, checksum in part.items()}
            problem = self._attempt(lambda: self._complete(partial, target, document, shards), in_all=False)
        if problem is None and self._store is not None:
            problem = self._send(self._store, target, step, own)
        if problem is not None:
            self._attempt(lambda: shutil.rmtree(partial, ignore_errors=True), in_all=False)
            newest = newest_checkpoint(self.folder)
            kept = f"the last good one is {newest.folder}" if newest else "there is no earlier one"
            place = self._store.uri if self._store else self.folder
            raise UserError(
                "CheckpointFailed", f"the checkpoint of step {step} cannot be saved in {place}: {problem}; {kept}"
            )
        return target

    def _send(self, store: ObjectStore, folder: Path, step: int, own: Sequence[str]) -> str | None:
        """Bring a complete checkpoint to the store, each process its own shards; what went wrong."""
        problem = self._attempt(lambda: store.begin(folder), in_all=False)
        if problem is None:
            problem = self._attempt(lambda: store.upload(folder, own))
        if problem is None:
            problem = self._attempt(lambda: store.complete_upload(folder, step, self._keep), in_all=False)
        return problem

    def _stored_at(self, folder: Path) -> str:
        return f"{self._store.uri}/{folder.name}" if self._store else ""

    def _attempt(self, action: Callable[[], None], *, in_all: bool = True) -> str | None:
        """Do something in all processes or in the first; all of them learn whether it failed, and why."""
        problem = None
        if in_all or self._workers.is_first:
            try:
                action()
            # Whatever it is (DCP's is no Exception): a process that left here would let the others wait for it.
            except (Exception, CheckpointException) as error:
                problem = _cause(error)
        return next((found for found in self._workers.gather(problem) if found is not None), None)

    def _write_shards(self, folder: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
        """This process's shards; returns their checksums."""
        writer = ShardWriter(folder)
        save_state_dict(tensors, storage_writer=writer, process_group=self._workers.control_group)
        return writer.checksums

    def _complete(self, partial: Path, target: Path, document: str, shards: Mapping[str, str]) -> None:
        write_checksums(partial, shards, {STATE: document.encode()})
        (partial / STATE).write_text(document)
        for name in (CHECKSUMS, STATE):
            _sync(partial / name)
        _sync(partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        _sync(self.folder)
        self._prune(target)

    def _prune(self, newest: Path) -> None:
        folders = sorted(self.folder.glob("step-*"))
        complete = [path for path in folders if _COMPLETE.fullmatch(path.name)]
        passed = [
            path for path in folders if path.name.endswith(_DAMAGED) and path.name[: -len(_DAMAGED)] <= newest.name
        ]
        for old in complete[: -1 if self._store else -self._keep] + passed:
            shutil.rmtree(old)


def state_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The trainable weights and the optimizers' tensors, by name; loading writes into these very tensors."""
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen_are_left_out = StateDictOptions(ignore_frozen_params=True, flatten_optimizer_state_dict=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=frozen_are_left_out)
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in weights.items() if name in trainable}
    for index, optimizer in enumerate(optimizers):
        state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=frozen_are_left_out)
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    return tensors


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cause(error: BaseException) -> str:
    """The innermost reason, in a few words."""
    failures = getattr(error, "failures", None)
    if failures:
        first = next(iter(failures.values()))
        error = first[0] if isinstance(first, tuple) else first
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return f"{_NO_SPACE[error.errno]} ({error.strerror}); free some, or point spec.checkpoint.uri elsewhere"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
