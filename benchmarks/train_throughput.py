"""Tokens a second of the training loop, alone in one process: GPT-2 124M and the demo's model, with random weights.

Needs torch and transformers alone: documents of random tokens go through the real token store, packing and loader, and
the steps are `TrainLoop`'s. Nothing is learned and nothing is saved. On a CPU, what is reached is also given as a share
of what `torch.mm` reaches there in fp32; on a GPU, as a share of the data sheet's dense bf16 peak (MFU).

    python benchmarks/train_throughput.py [--device cuda] [--model gpt2 demo] [--steps 20] [--precision bf16]
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from plinth_api.parse import parse_resource
from plinth_api.pretrain_job import PretrainJob
from plinth_api.resolve import ResolveSettings, resolve_train_run
from plinth_api.run import TrainRun
from plinth_workloads.data.loader import BatchLoader, Rows
from plinth_workloads.data.packing import ConcatenatedRows, shuffled_documents
from plinth_workloads.data.token_store import TokenizedDocument, TokenStore, write_token_store
from plinth_workloads.objectives.causal_lm import CausalLMLoss
from plinth_workloads.train.blocks import prepare_blocks
from plinth_workloads.train.checkpoint import Checkpointer, SavedCheckpoint
from plinth_workloads.train.cpu_products import choose_products
from plinth_workloads.train.loop import TrainLoop
from plinth_workloads.train.metrics import flops_per_token, peak_flops
from plinth_workloads.train.optim import build_optimizers
from plinth_workloads.train.parallel import Workers
from plinth_workloads.train.rollback import Rollback
from record import REPOSITORY, spread, write_record

DEMO = REPOSITORY / "examples" / "demo" / "pretrain.yaml"
_UNREACHED = 10_000_000
_MATMUL_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and the batch that it is measured with.

    Attributes:
        architecture: A transformers model type.
        config: Arguments of its configuration.
        mlp_size: Width of a block's hidden layer: the size of its largest matrix product.
        sequence_length: Tokens of a row.
        rows_a_step: Rows of an optimizer step.
        rows_a_pass: Rows of one forward and backward pass.
        warmup: Steps before the measured ones.
        steps: Measured steps.
    """

    architecture: str
    config: Mapping[str, Any]
    mlp_size: int
    sequence_length: int
    rows_a_step: int
    rows_a_pass: int
    warmup: int
    steps: int


def subject_of(model: str, device: torch.device) -> Subject:
    """What is measured of a model: on a GPU a batch that fills it, on a CPU a few small steps."""
    on_gpu = device.type == "cuda"
    if model == "demo":
        config = {**yaml.safe_load(DEMO.read_text())["spec"]["model"]["config"], "vocab_size": 1024}
        mlp_size = int(config["intermediate_size"])
        if on_gpu:
            return Subject("llama", config, mlp_size, 256, 512, 256, 10, 40)
        return Subject("llama", config, mlp_size, 256, 8, 8, 5, 40)
    # Without dropout, as those who publish figures of this model train it.
    config = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    if on_gpu:
        return Subject("gpt2", config, 4 * 768, 1024, 64, 32, 10, 30)
    return Subject("gpt2", config, 4 * 768, 256, 4, 4, 1, 4)


class _Steps:
    """A reporter that remembers every step."""

    def __init__(self) -> None:
        self.metrics: list[Mapping[str, float]] = []

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics.append(metrics)

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        raise AssertionError("nothing is evaluated here")

    def on_checkpoint(self, checkpoint: SavedCheckpoint) -> None:
        raise AssertionError("nothing is saved here")

    def on_rollback(self, rollbacks: Sequence[Rollback]) -> None:
        raise AssertionError("there is nothing to go back to")


def main() -> int:
    """Measure the models and write one record; the exit code."""
    arguments = _parser().parse_args()
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    precision = arguments.precision or ("bf16" if on_gpu else "fp32")
    compiled = on_gpu if arguments.compile is None else arguments.compile
    figures: dict[str, Any] = {}
    settings: dict[str, Any] = {"precision": precision, "compile": compiled, "documents": "random tokens, packed"}
    for name in arguments.model:
        subject = subject_of(name, device)
        steps = arguments.steps or subject.steps
        with tempfile.TemporaryDirectory() as folder:
            run = _run_document(Path(folder), subject, precision, compiled)
            figures[name] = _measure(run, subject, steps, device, Path(folder))
        settings[name] = {
            "architecture": subject.architecture,
            "config": dict(subject.config),
            "sequence_length": subject.sequence_length,
            "rows_a_step": subject.rows_a_step,
            "rows_a_pass": subject.rows_a_pass,
            "warmup_steps": subject.warmup,
            "measured_steps": steps,
        }
        sys.stdout.write(_line(name, figures[name]))
    path = write_record("train_throughput", device, settings, figures)
    sys.stdout.write(f"written to {path}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", nargs="+", choices=("demo", "gpt2"), default=["demo", "gpt2"])
    parser.add_argument("--steps", type=int, help="measured steps; a few on a CPU, some dozens on a GPU when left out")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile; on a GPU only when left out"
    )
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="bf16 on a GPU, fp32 on a CPU when left out")
    return parser


def _run_document(folder: Path, subject: Subject, precision: str, compiled: bool) -> TrainRun:
    job = parse_resource(
        {
            "apiVersion": "plinth.dev/v1alpha1",
            "kind": "PretrainJob",
            "metadata": {"name": "throughput"},
            "spec": {
                "objective": {"causalLM": {}},
                "model": {"architecture": subject.architecture, "tokenizer": {"train": {}}},
                "data": {"train": [{"uri": "file:///unread.jsonl"}]},
                "training": {
                    "steps": _UNREACHED,
                    "sequenceLength": subject.sequence_length,
                    "globalBatchSize": subject.rows_a_step,
                    "microBatchSize": subject.rows_a_pass,
                    "precision": precision,
                    "compile": compiled,
                },
                "output": {"model": "throughput"},
            },
        }
    )
    assert isinstance(job, PretrainJob)
    places = ResolveSettings(
        uid="throughput",
        volume_root=str(folder),
        checkpoint_root=str(folder),
        work_dir=str(folder),
        tracking_uri="unused",
    )
    return resolve_train_run(job, places, {})


def _measure(run: TrainRun, subject: Subject, steps: int, device: torch.device, folder: Path) -> dict[str, Any]:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = _build_model(subject, run)
    reporter = _Steps()
    loop = _build_loop(run, model, device, _random_store(folder, subject, steps, model), reporter)
    started = time.perf_counter()
    # On a GPU a step is reported once the next one is on its way.
    while len(reporter.metrics) < subject.warmup:
        loop.train_step()
    warmed_up = time.perf_counter()
    while len(reporter.metrics) < subject.warmup + steps:
        loop.train_step()
    measured = reporter.metrics[subject.warmup :]
    tokens_a_step = subject.rows_a_step * subject.sequence_length
    tokens_per_second = tokens_a_step / statistics.median(step["train/step_seconds"] for step in measured)
    flops = flops_per_token(model, model.config, subject.sequence_length)
    achieved = tokens_per_second * flops
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_per_second": round(tokens_per_second),
        "step_seconds": spread([step["train/step_seconds"] for step in measured]),
        "warmup_seconds": round(warmed_up - started, 2),
        "peak_memory_bytes": int(measured[-1]["train/memory_bytes"]),
        "peak_memory_is": "allocated on the GPU"
        if device.type == "cuda"
        else "resident in the process, since it began",
        "attention": model.config._attn_implementation,
        "flops_per_token": round(flops),
        "achieved_flops_per_second": round(achieved),
        **_limits(subject, device, achieved),
    }


def _build_model(subject: Subject, run: TrainRun) -> Any:
    import transformers

    torch.manual_seed(run.training.seed)
    config = transformers.AutoConfig.for_model(subject.architecture, **subject.config)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.config.use_cache = False
    return model


def _random_store(folder: Path, subject: Subject, steps: int, model: nn.Module) -> TokenStore:
    """Documents of random tokens, of 20 tokens to four rows, as many as the steps need."""
    rng = np.random.default_rng(0)
    vocab_size = int(model.config.vocab_size)  # type: ignore[union-attr,arg-type]
    needed = subject.rows_a_step * (subject.warmup + steps + 2) * subject.sequence_length
    documents = []
    while needed > 0:
        length = int(rng.integers(20, 4 * subject.sequence_length))
        documents.append(TokenizedDocument(rng.integers(0, vocab_size, length).tolist()))
        needed -= length
    write_token_store(folder / "tokens", [documents], vocab_size)
    return TokenStore(folder / "tokens")


def _build_loop(run: TrainRun, model: Any, device: torch.device, store: TokenStore, reporter: _Steps) -> TrainLoop:
    training, workers = run.training, Workers(0, 1, device, control_group=None)
    loss: nn.Module = CausalLMLoss(model).train()
    # On the CPU, as a session does it; attention for a GPU is chosen before the model is there.
    choose_products(model, run)
    prepare_blocks(model, run, same_width=True)
    loss.to(device)
    documents = np.arange(store.num_documents)

    def plan_epoch(epoch: int) -> ConcatenatedRows:
        drawn = shuffled_documents(documents, [1.0] * len(documents), training.seed, epoch)
        return ConcatenatedRows(drawn, store.lengths, training.sequence_length, seed=epoch)

    return TrainLoop(
        run,
        workers=workers,
        model=model,
        loss=loss,
        optimizers=build_optimizers(model, training),
        loader=BatchLoader(
            Rows(store, training.sequence_length, pad_id=0),
            plan_epoch,
            global_batch_size=training.global_batch_size,
            micro_batch_size=training.micro_batch_size,
        ),
        checkpointer=Checkpointer(Path(run.work_dir) / "checkpoints", 1, workers),
        evaluate=None,
        num_steps=_UNREACHED,
        fingerprint=store.fingerprint,
        reporters=[reporter],
    )


def _limits(subject: Subject, device: torch.device, achieved: float) -> dict[str, float | str]:
    """What this machine could do at most, and which share of it was reached."""
    if device.type == "cuda":
        peak = peak_flops(device)
        if peak is None:
            return {"mfu": "the peak of this GPU is not known"}
        return {"peak_flops_per_second": peak, "mfu": round(achieved / peak, 4)}
    tokens, hidden = subject.rows_a_pass * subject.sequence_length, _hidden_size(subject)
    of_this_size = matmul_flops(tokens, hidden, subject.mlp_size)
    return {
        f"fp32_mm_{tokens}x{hidden}x{subject.mlp_size}_flops_per_second": round(of_this_size),
        "share_of_mm_of_this_size": round(achieved / of_this_size, 4),
    }


def _hidden_size(subject: Subject) -> int:
    return int(subject.config.get("hidden_size", subject.mlp_size // 4))


def matmul_flops(rows: int, inner: int, columns: int) -> float:
    """FLOP/s of an fp32 product [rows, inner] x [inner, columns] on the CPU: the best of many, after a warm-up."""
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    result = torch.empty(rows, columns)
    best, until = float("inf"), time.perf_counter() + _MATMUL_SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(left, right, out=result)
        best = min(best, time.perf_counter() - started)
    return 2.0 * rows * inner * columns / best


def _line(name: str, figures: Mapping[str, Any]) -> str:
    limit = figures.get("mfu", figures.get("share_of_mm_of_this_size"))
    return (
        f"{name}: {figures['tokens_per_second']:,} tokens/s, {figures['peak_memory_bytes'] / 2**30:.2f} GiB, "
        f"{limit if isinstance(limit, str) else format(limit, '.1%')} of the limit\n"
    )


if __name__ == "__main__":
    sys.exit(main())
