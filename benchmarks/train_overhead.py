"""How much of a training step is ours: the loop of the demo against a bare forward, backward, clip and optimizer.

Both train the same model with the same optimizer on the same rows in one process, in blocks that take turns, so that
whatever else the machine does hits both. The bare loop finds its batches ready; ours reads and packs them, agrees on
the number of targets, seeds, sets the learning rate and reports. The same is done around a model that computes nothing,
where the difference stands out from the noise of the machine. Exits with 1 where the median share is above the limit.

    python benchmarks/train_overhead.py [--corpora .plinth/volumes/corpora] [--mlflow]
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plinth_api.pretrain_job import PretrainJob
from plinth_api.resolve import ResolveSettings, resolve_train_run
from plinth_api.run import RunTracking, TrainRun
from plinth_workloads.data.loader import Batch, BatchLoader, Rows
from plinth_workloads.data.prepare import PreparedData, plan_training_epoch, prepare_data
from plinth_workloads.manifests import load_manifests
from plinth_workloads.models.load import load_for_training
from plinth_workloads.objectives.causal_lm import CausalLMLoss
from plinth_workloads.tracking import Tracker
from plinth_workloads.train.blocks import prepare_blocks
from plinth_workloads.train.checkpoint import Checkpointer, SavedCheckpoint
from plinth_workloads.train.cpu_products import choose_products
from plinth_workloads.train.loop import Reporter, TrainLoop
from plinth_workloads.train.optim import build_optimizers
from plinth_workloads.train.parallel import Workers
from plinth_workloads.train.progress import ProgressLog
from plinth_workloads.train.reporting import ProgressReporter, TrackingReporter
from plinth_workloads.train.rollback import Rollback
from record import REPOSITORY, spread, write_record

DEMO = REPOSITORY / "examples" / "demo" / "pretrain.yaml"
LIMIT = 0.03
"""The share of a step that the loop may cost."""

_CPU = torch.device("cpu")
_ALONE = Workers(rank=0, world_size=1, device=_CPU, control_group=None)
_UNREACHED = 10_000_000
_EMPTY_BLOCK = 10
_CHECKPOINTS = 3
_WORDS = ("def", "return", "self", "import", "class", "(value)", "= None", ":\n    ", "\n", "name", "for", "in", "[0]")


class _Clock:
    """Seconds spent in one category."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self, action: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = action()
        self.seconds += time.perf_counter() - started
        return result


class _TimedLoader(BatchLoader):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.clock = _Clock()

    def next_step(self) -> list[Batch]:
        batches: list[Batch] = self.clock.time(super().next_step)
        return batches


class _TimedReporter:
    def __init__(self, reporter: Reporter, clock: _Clock) -> None:
        self._reporter, self._clock = reporter, clock

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._clock.time(lambda: self._reporter.on_step(step, metrics))

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._reporter.on_evaluation(step, metrics)

    def on_checkpoint(self, checkpoint: SavedCheckpoint) -> None:
        self._reporter.on_checkpoint(checkpoint)

    def on_rollback(self, rollbacks: Sequence[Rollback]) -> None:
        self._reporter.on_rollback(rollbacks)


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds of one block."""

    wall: float
    cpu: float


@dataclass(slots=True)
class _Subject:
    """What both loops train, and the parts that the bare one needs."""

    run: TrainRun
    model: nn.Module
    loss: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    loop: TrainLoop
    loader: _TimedLoader
    twin: BatchLoader
    reporting: _Clock


def main() -> int:
    """Measure and write the result; the exit code."""
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        run, corpus = _run_document(home, arguments.corpora)
        torch.set_num_threads(max(1, int(run.workers.cpus)))
        tracker = Tracker(run.tracking) if arguments.mlflow else None
        log, data = ProgressLog(home), prepare_data(run, None)
        model, nothing = load_for_training(run, data.tokenizer, None), _Nothing()
        loss = CausalLMLoss(model)
        choose_products(model, run)
        prepare_blocks(model, run, same_width=True)
        subject = _build(run, data, model, loss, log, tracker)
        pairs = _measure(subject, arguments.block, arguments.pairs)
        empty = _measure(_build(run, data, nothing, nothing, log, tracker), _EMPTY_BLOCK, arguments.pairs)
        saving = [_timed(subject.loop.save).wall for _ in range(_CHECKPOINTS)]
        if tracker is not None:
            tracker.close("FINISHED")
    figures = {
        **_figures(subject, pairs, arguments.block, saving),
        "loop_seconds_a_step_around_an_empty_model": spread([(a.wall - b.wall) / _EMPTY_BLOCK for a, b in empty]),
    }
    loop_seconds = figures["loop_seconds_a_step_around_an_empty_model"]["median"]
    figures["loop_share_by_the_empty_model"] = round(loop_seconds / figures["step_seconds"], 6)
    settings = {
        "job": str(DEMO.relative_to(REPOSITORY)),
        "corpus": corpus,
        "rows_a_step": run.training.global_batch_size,
        "sequence_length": run.training.sequence_length,
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "steps_a_block": arguments.block,
        "pairs_of_blocks": arguments.pairs,
        "mlflow": "a run in SQLite, sent by its thread" if arguments.mlflow else "a null reporter",
        "checkpoints_and_evaluations": "not part of a step; a checkpoint is timed by itself",
    }
    script = "train_overhead_mlflow" if arguments.mlflow else "train_overhead"
    path = write_record(script, _CPU, settings, figures)
    overhead = figures["overhead_share_wall"]
    sys.stdout.write(
        f"overhead {overhead['median']:.2%} of a step (95% sure: {overhead['median_low']:.2%} to "
        f"{overhead['median_high']:.2%}, limit {LIMIT:.0%}); around an empty "
        f"model {loop_seconds * 1e3:.2f} ms, {figures['loop_share_by_the_empty_model']:.2%} of a step; "
        f"written to {path}\n"
    )
    return 0 if overhead["median"] < LIMIT else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--corpora",
        type=Path,
        default=REPOSITORY / ".plinth" / "volumes" / "corpora",
        help="what examples/demo/prepare.py wrote; made up where it is absent",
    )
    parser.add_argument("--block", type=int, default=2, help="steps of a block")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of blocks")
    parser.add_argument("--mlflow", action="store_true", help="report to a real MLflow run in SQLite too")
    return parser


def _run_document(home: Path, corpora: Path) -> tuple[TrainRun, str]:
    """The demo's run as one of its workers has it, and what it reads."""
    found = (corpora / "pycode").is_dir()
    if not found:
        corpora = home / "volumes" / "corpora"
        _write_corpus(corpora / "pycode")
    job = load_manifests([DEMO])[0].resource
    assert isinstance(job, PretrainJob)
    settings = ResolveSettings(
        uid="overhead",
        volume_root=str(corpora.resolve().parent),
        checkpoint_root=str(home / "checkpoints"),
        work_dir=str(home / "work"),
        tracking_uri=f"sqlite:///{home}/mlflow.db",
    )
    run = resolve_train_run(job, settings, {})
    rows = run.training.global_batch_size // run.workers.num_workers
    alone = run.model_copy(
        update={
            "workers": run.workers.model_copy(update={"num_workers": 1, "replicate": 1}),
            "training": run.training.model_copy(update={"global_batch_size": rows, "micro_batch_size": rows}),
            "checkpoint": run.checkpoint.model_copy(update={"uri": f"file://{home}/checkpoints"}),
            "tracking": RunTracking.model_validate({**run.tracking.model_dump(), "uri": settings.tracking_uri}),
        }
    )
    return alone, "examples/demo/prepare.py's" if found else "synthetic"


def _write_corpus(folder: Path) -> None:
    """Documents of mixed length under the names that the demo's job reads."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    for name, count in (("train-00000", 400), ("train-00001", 400), ("validation", 20)):
        texts = (" ".join(rng.choices(_WORDS, k=rng.randint(20, 3000))) for _ in range(count))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in texts))


def _build(
    run: TrainRun, data: PreparedData, model: Any, loss: nn.Module, log: ProgressLog, tracker: Tracker | None
) -> _Subject:
    optimizers = build_optimizers(model, run.training)
    loader, twin = _loader(_TimedLoader, run, data), _loader(BatchLoader, run, data)
    assert isinstance(loader, _TimedLoader)
    reporting = _Clock()
    reporters: list[Reporter] = [ProgressReporter(log), TrackingReporter(tracker or _NullTracker())]  # type: ignore[arg-type]
    loop = TrainLoop(
        run,
        workers=_ALONE,
        model=model,
        loss=loss,
        optimizers=optimizers,
        loader=loader,
        checkpointer=Checkpointer(Path(run.checkpoint.uri.removeprefix("file://")), run.checkpoint.keep, _ALONE),
        evaluate=None,
        num_steps=_UNREACHED,
        fingerprint=data.fingerprint,
        reporters=[_TimedReporter(reporter, reporting) for reporter in reporters],
        stop_file=Path(run.work_dir) / "stop",
    )
    return _Subject(run, model, loss, optimizers, loop, loader, twin, reporting)


class _Nothing(nn.Module):
    """A model that computes nothing: what a step still takes is the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids_BT: Tensor, position_ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
        return self.weight.sum()


class _NullTracker:
    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics and forget them."""


def _loader(kind: type[BatchLoader], run: TrainRun, data: PreparedData) -> BatchLoader:
    return kind(
        Rows(data.store, run.training.sequence_length, data.tokenizer.pad_token_id),
        lambda epoch: plan_training_epoch(run, data, epoch),
        global_batch_size=run.training.global_batch_size,
        micro_batch_size=run.training.micro_batch_size,
    )


def _measure(subject: _Subject, block: int, pairs: int) -> list[tuple[_Times, _Times]]:
    """(ours, bare) for each pair of blocks over the same rows; who goes first takes turns."""
    subject.loss.train()
    measured = []
    for number in range(-2, pairs):
        subject.twin.load_state_dict(subject.loader.state_dict())
        steps = [subject.twin.next_step() for _ in range(block)]
        if number == 0:
            subject.loader.clock.seconds = subject.reporting.seconds = 0.0

        def ours() -> None:
            for _ in range(block):
                subject.loop.train_step()

        def bare(steps: Sequence[Sequence[Batch]] = steps) -> None:
            _train_bare(subject, steps)

        if number % 2:
            mine, plain = _timed(ours), _timed(bare)
        else:
            plain, mine = _timed(bare), _timed(ours)
        if number >= 0:
            measured.append((mine, plain))
    return measured


def _train_bare(subject: _Subject, steps: Sequence[Sequence[Batch]]) -> None:
    trainable = [parameter for parameter in subject.model.parameters() if parameter.requires_grad]
    for batches in steps:
        for batch in batches:
            loss = subject.loss(**batch.inputs)
            (loss / batch.num_targets).backward()
        nn.utils.clip_grad_norm_(trainable, subject.run.training.max_grad_norm)
        for optimizer in subject.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _timed(action: Callable[[], Any]) -> _Times:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return _Times(time.perf_counter() - wall, time.process_time() - cpu)


def _figures(
    subject: _Subject, pairs: Sequence[tuple[_Times, _Times]], block: int, saving: Sequence[float]
) -> dict[str, Any]:
    steps = block * len(pairs)
    step_seconds = statistics.median(ours.wall for ours, _ in pairs) / block
    bare_seconds = statistics.median(bare.wall for _, bare in pairs) / block
    loader, reporting = subject.loader.clock.seconds / steps, subject.reporting.seconds / steps
    every = subject.run.checkpoint.every_steps or 1
    # A share of the whole step: what would be left of it without the loop.
    wall = [1 - bare.wall / ours.wall for ours, bare in pairs]
    cpu = [1 - bare.cpu / ours.cpu for ours, bare in pairs]
    return {
        "overhead_share_wall": spread(wall),
        "overhead_share_cpu_time": spread(cpu),
        "limit_share": LIMIT,
        "within_limit": statistics.median(wall) < LIMIT,
        "step_seconds": round(step_seconds, 6),
        "bare_step_seconds": round(bare_seconds, 6),
        "seconds_a_step_by_category": {
            "reading_and_packing_rows": round(loader, 6),
            "reporting": round(reporting, 6),
        },
        "checkpoint_seconds": round(statistics.median(saving), 4),
        "checkpoint_share_at_the_jobs_interval": round(statistics.median(saving) / (every * step_seconds), 6),
        "tokens_per_second": round(
            subject.run.training.global_batch_size * subject.run.training.sequence_length / step_seconds
        ),
    }


if __name__ == "__main__":
    sys.exit(main())
