"""Tiny runs for tests: a real tokenizer, real packing, a llama of two layers, nothing tracked.

`python tests/training.py RUN_JSON WEIGHTS [--steps N]` trains one in a process of its own, also under torchrun.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from makers import fine_tune_document, pretrain_document
from plinth_api.parse import parse_resource
from plinth_api.resolve import ResolveSettings, resolve_train_run
from plinth_api.run import TrainRun
from plinth_workloads.train.parallel import Workers, join_workers
from plinth_workloads.train.progress import ProgressLog
from plinth_workloads.train.rollback import Rollback
from plinth_workloads.train.session import Session, open_session

ALONE = Workers(rank=0, world_size=1, device=torch.device("cpu"), control_group=None)
WORDS = ("alpha", "beta", "gamma", "delta", "return", "def", "class", "import", "(x)", "+ 1", ":\n    ", "\n")


def write_corpus(path: Path, *, documents: int = 60, seed: int = 0) -> Path:
    """A jsonl file of documents of mixed length."""
    rng = random.Random(seed)
    rows = [{"text": " ".join(rng.choices(WORDS, k=rng.randint(3, 60)))} for _ in range(documents)]
    return write_jsonl(path, rows)


def write_chats(path: Path, *, documents: int = 40, seed: int = 1) -> Path:
    """A jsonl file of chats of one question and one answer."""
    rng = random.Random(seed)
    rows = []
    for _ in range(documents):
        word = rng.choice(WORDS[:6])
        turns = [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": f"{word} {word}"}]
        rows.append({"messages": turns})
    return write_jsonl(path, rows)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """One row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings_in(folder: Path, *, tracking_uri: str | None = None, uid: str = "tiny-uid") -> ResolveSettings:
    """Everything of a run below one folder."""
    return ResolveSettings(
        uid=uid,
        volume_root=str(folder / "volumes"),
        checkpoint_root=str(folder / "checkpoints"),
        work_dir=str(folder / "work"),
        tracking_uri=tracking_uri or f"sqlite:///{folder}/mlflow.db",
    )


def make_train_run(folder: Path, *, tracking_uri: str | None = None, **spec: Any) -> TrainRun:
    """A pretraining run over a corpus in `folder`; `spec` is merged into the job's."""
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        write_corpus(corpus)
    document = pretrain_document(**{"data": {"train": [{"uri": f"file://{corpus}"}]}, **spec})
    return resolve_train_run(parse_resource(document), settings_in(folder, tracking_uri=tracking_uri), {})  # type: ignore[arg-type]


def make_tuning_run(folder: Path, base: Path, *, tracking_uri: str | None = None, **spec: Any) -> TrainRun:
    """A fine-tuning run over chats in `folder` from a model's folder."""
    chats = write_chats(folder / "chats.jsonl")
    changes: dict[str, Any] = {"data": {"train": [{"uri": f"file://{chats}"}]}, "model": {"uri": f"file://{base}"}}
    document = fine_tune_document(**{**changes, **spec})
    return resolve_train_run(parse_resource(document), settings_in(folder, tracking_uri=tracking_uri), {})  # type: ignore[arg-type]


def write_run(run: TrainRun, folder: Path) -> Path:
    """The run document as a file."""
    path = folder / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(run.model_dump_json(by_alias=True))
    return path


class Losses:
    """A reporter that remembers every step's loss."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}
        self.reported: frozenset[str] = frozenset()
        self.evaluations: dict[int, dict[str, float]] = {}
        self.checkpoints: list[int] = []
        self.rollbacks: Sequence[Rollback] = ()

    def on_step(self, step, metrics):
        self.by_step[step] = metrics["train/loss"]
        self.reported = frozenset(metrics)

    def on_evaluation(self, step, metrics):
        self.evaluations[step] = dict(metrics)

    def on_checkpoint(self, checkpoint):
        self.checkpoints.append(checkpoint.step)

    def on_rollback(self, rollbacks):
        self.rollbacks = rollbacks


def open_alone(run: TrainRun) -> tuple[Session, Losses]:
    """A session in this process, and what it reports."""
    session = open_session(run, ALONE, None, None)
    losses = Losses()
    session.loop._reporters = [losses]
    return session, losses


def weights_of(session: Session) -> dict[str, torch.Tensor]:
    """A copy of the trained weights."""
    return {name: value.detach().clone() for name, value in session.model.state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("weights", type=Path)
    arguments = parser.parse_args()
    run = TrainRun.model_validate_json(arguments.run.read_text())
    torch.set_num_threads(1)
    with join_workers(run) as workers:
        log = ProgressLog(Path(run.work_dir)) if workers.is_first else None
        session = open_session(run, workers, log, None)
        session.loop.train()
        whole: dict[str, Any] = get_model_state_dict(
            session.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        if workers.is_first:
            save_file({name: value.clone().contiguous() for name, value in whole.items()}, arguments.weights)


if __name__ == "__main__":
    main()
