"""What comparisons with other trainers on a CPU share: the llama, the command line, the times of a trainer's steps."""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plinth_api.model_service import ModelService
from plinth_api.parse import parse_resource
from plinth_api.resolve import ResolveSettings, resolve_train_run
from plinth_api.run import TrainRun
from plinth_workloads.train.parallel import Workers

CPU = torch.device("cpu")
ALONE = Workers(0, 1, CPU, control_group=None)
UNREACHED = 10_000_000
"""A number of steps that no comparison gets to."""
LLAMA_VOCABULARY = 32_000
"""What transformers' LlamaConfig has where none is given."""
END = 0
"""Id of the token that ends a document, and that fills rows."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The model, the batch, and how many files of the standard library are read."""

    hidden_size: int
    layers: int
    heads: int
    mlp_size: int
    vocab_size: int
    sequence_length: int
    rows_a_step: int
    files: int
    precision: str = "fp32"


def random_llama(subject: Subject) -> Any:
    """The same random weights for every side."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=subject.vocab_size,
        hidden_size=subject.hidden_size,
        num_hidden_layers=subject.layers,
        num_attention_heads=subject.heads,
        num_key_value_heads=subject.heads,
        intermediate_size=subject.mlp_size,
        max_position_embeddings=subject.sequence_length,
        pad_token_id=END,
        eos_token_id=END,
    )
    return AutoModelForCausalLM.from_config(config)


def parser(description: str | None, sides: Sequence[str]) -> argparse.ArgumentParser:
    """The command line of a comparison of some sides."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--sides", nargs="+", choices=tuple(sides), default=list(sides))
    made.add_argument("--rounds", type=int, default=6, help="blocks of each side that are measured; at least 2")
    made.add_argument("--steps", type=int, default=5, help="steps of a block")
    made.add_argument("--tiny", action="store_true", help="a tiny model, to try the script; nothing is written")
    return made


def run_document(folder: Path, subject: Subject, kind: str, spec: Mapping[str, Any], **training: Any) -> TrainRun:
    """Our run with the subject's rows: all of a step in one pass, nothing read or tracked, everything in one folder."""
    rows = subject.rows_a_step
    sizes = {"sequenceLength": subject.sequence_length, "globalBatchSize": rows, "microBatchSize": rows}
    precision = {"precision": subject.precision}
    both = {"data": {"train": [{"uri": "file:///unread.jsonl"}]}, "output": {"model": "peers"}}
    document = {
        "apiVersion": "plinth.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "peers"},
        "spec": {**spec, **both, "training": {"steps": UNREACHED, **sizes, **precision, **training}},
    }
    job = parse_resource(document)
    assert not isinstance(job, ModelService)
    return resolve_train_run(job, _places(folder), {})


def _places(folder: Path) -> ResolveSettings:
    root = str(folder)
    return ResolveSettings(uid="peers", volume_root=root, checkpoint_root=root, work_dir=root, tracking_uri="unused")


def steps_timed() -> Any:
    """A callback of transformers' Trainer whose `seconds` are those of all steps but the first.

    What the trainer does before its first step is not counted, as ours is ready too.
    """
    from transformers import TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc]
        """When steps began, and when the last one ended."""

        def __init__(self) -> None:
            self._began: list[float] = []
            self._ended = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self._began.append(time.perf_counter())

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self._ended = time.perf_counter()

        @property
        def seconds(self) -> float:
            return self._ended - self._began[1]

    return Steps()
