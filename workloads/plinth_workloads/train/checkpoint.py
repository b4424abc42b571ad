"""Distributed checkpoints: written aside, completed by one rename, the last few kept.

A checkpoint is a folder `step-<n>` of safetensors shards (torch.distributed.checkpoint's Hugging Face storage, which
needs no pickle) and `state.json` with everything that is not a tensor. A folder that is still `*.tmp` never counts.
"""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict

from plinth_workloads.errors import UserError
from plinth_workloads.train.parallel import Workers

_STATE = "state.json"
_NO_SPACE = {errno.ENOSPC: "no space is left", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file may not grow"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    step: int
    folder: Path

    @property
    def uri(self) -> str:
        """file:///..."""
        return f"file://{self.folder}"


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The complete checkpoint with the most steps in a folder or in the folders below it."""
    found = [
        Checkpoint(int(state.parent.name.removeprefix("step-")), state.parent)
        for state in folder.glob(f"**/step-*/{_STATE}")
        if not state.parent.name.endswith(".tmp")
    ]
    return max(found, key=lambda checkpoint: checkpoint.step, default=None)


class Checkpointer:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int, workers: Workers) -> None:
        self.folder = folder
        self._keep = keep
        self._workers = workers

    def newest(self) -> Checkpoint | None:
        """The checkpoint to go on from."""
        return newest_checkpoint(self.folder)

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        state: dict[str, Any],
    ) -> Checkpoint:
        """Save tensors and `state`; every process calls this, and it returns once the checkpoint is complete.

        Raises:
            UserError: CheckpointFailed, in every process; earlier checkpoints are as they were.
        """
        target = self.folder / f"step-{step:08d}"
        partial = target.with_suffix(".tmp")
        problem = self._attempt(lambda: _make_empty(partial))
        if problem is None:
            problem = self._attempt_save(partial, model, optimizers)
        if problem is None:
            problem = self._attempt(lambda: self._complete(partial, target, {**state, "step": step}))
        if problem is not None:
            self._attempt(lambda: shutil.rmtree(partial, ignore_errors=True))
            newest = self.newest()
            kept = f"the last good one is {newest.folder}" if newest else "there is no earlier one"
            raise UserError(
                "CheckpointFailed", f"the checkpoint of step {step} cannot be saved in {self.folder}: {problem}; {kept}"
            )
        return Checkpoint(step, target)

    def load(
        self, checkpoint: Checkpoint, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
    ) -> dict[str, Any]:
        """Load tensors in place.

        Returns:
            The state that was given to `save`, with `step`.

        Raises:
            UserError: CheckpointFailed for the checkpoint of another model, or a damaged one.
        """
        tensors = _tensors(model, optimizers)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_state_dict(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint.folder)))
        except (CheckpointException, RuntimeError, ValueError, KeyError, OSError) as error:
            raise UserError(
                "CheckpointFailed",
                f"{checkpoint.folder} cannot be loaded into this model: {_cause(error)}; "
                "it is of another model or damaged: remove the folder to go on from the one before",
            ) from error
        state: dict[str, Any] = json.loads((checkpoint.folder / _STATE).read_text())
        return state

    def _attempt_save(self, partial: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> str | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
                save_state_dict(_tensors(model, optimizers), storage_writer=writer)
        except (CheckpointException, OSError, RuntimeError) as error:
            return _cause(error)
        return None

    def _attempt(self, action: Any) -> str | None:
        """Do something in the first process; all of them learn whether it failed."""
        problem = None
        if self._workers.is_first:
            try:
                action()
            except OSError as error:
                problem = _cause(error)
        failed = self._workers.sum(float(problem is not None))[0] > 0
        return (problem or "the first worker failed") if failed else None

    def _complete(self, partial: Path, target: Path, state: dict[str, Any]) -> None:
        (partial / _STATE).write_text(json.dumps(state))
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        _sync(self.folder)
        complete = sorted(path for path in self.folder.glob("step-*") if not path.name.endswith(".tmp"))
        for old in complete[: -self._keep]:
            shutil.rmtree(old)


def _tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
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
