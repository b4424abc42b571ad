"""What Ray Train, tracking and checkpoints cost a training: `plinth run` of one worker beside torchrun on a bare loop.

Both train the demo's model on the standard library's source with the same rows a step, and take turns, the first of a
pair changes. `plinth run` is the whole of it: Ray's processes, the worker under Ray Train, an MLflow run in SQLite,
progress, a checkpoint every 50 steps. The bare loop has its batches ready and is forward, backward, clipping and step,
in one process that torchrun starts. Either worker has the first core to itself, everything else runs on the second.
What counts are the seconds between two steps; starting up does not. Exits with 1 where the median is above the limit.

    python benchmarks/ray_overhead.py [--pairs 5] [--steps 150]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

import torch
import yaml
from torch import nn

from plinth_api.resolve import resolve_train_run
from plinth_api.run import TrainRun
from plinth_workloads.data.loader import BatchLoader, Rows
from plinth_workloads.data.prepare import plan_training_epoch, prepare_data
from plinth_workloads.local import Home
from plinth_workloads.manifests import Manifest, load_manifests
from plinth_workloads.models.load import load_for_training
from plinth_workloads.objectives.causal_lm import CausalLMLoss
from plinth_workloads.train.blocks import prepare_blocks
from plinth_workloads.train.cpu_products import choose_products
from plinth_workloads.train.optim import build_optimizers
from plinth_workloads.train.progress import read_progress
from record import REPOSITORY, spread, write_record

DEMO = REPOSITORY / "examples" / "demo" / "pretrain.yaml"
LIMIT = 0.03
"""The share of a step that all of it may cost."""
WARM_UP_STEPS = 20
ROWS = 4
SAVED_EVERY = 50
FILES = 200
WORKER_CORE, OTHER_CORE = {0}, {1}
_WORKER_TITLE = b"ray::RayTrainWorker"
_LOOK_SECONDS = 0.2


def main() -> int:
    """Run the pairs, print them and write the record; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="at least 2")
    parser.add_argument("--steps", type=int, default=150, help="steps of a run that count")
    parser.add_argument("--bare", nargs=2, type=Path, metavar=("RUN", "FOUND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        document, found = arguments.bare
        found.write_text(json.dumps(train_bare(TrainRun.model_validate_json(document.read_text()))))
        return 0
    pairs = [_pair(index, arguments.steps) for index in range(arguments.pairs)]
    costs = [1 - bare / ours for ours, bare in pairs]
    figures = {
        "cost_share": spread(costs),
        "limit_share": LIMIT,
        "within_limit": statistics.median(costs) < LIMIT,
        "step_seconds": spread([ours for ours, _ in pairs]),
        "bare_step_seconds": spread([bare for _, bare in pairs]),
        "noise_of_the_bare_loop": round(statistics.pstdev(bare for _, bare in pairs) / pairs[0][1], 4),
        "pairs": [{"plinth_run": round(ours, 5), "torchrun": round(bare, 5)} for ours, bare in pairs],
    }
    settings = {
        "job": str(DEMO.relative_to(REPOSITORY)),
        "rows_a_step": ROWS,
        "pairs": arguments.pairs,
        "steps": arguments.steps,
        "warm_up_steps": WARM_UP_STEPS,
        "checkpoint_every_steps": SAVED_EVERY,
        "cores": "the worker on the first, everything else on the second",
    }
    packages = ("torch", "ray", "mlflow", "transformers")
    path = write_record("ray_overhead", torch.device("cpu"), settings, figures, packages=packages, has_own_load=True)
    tell(f"all of it costs {statistics.median(costs):.1%} of a step (limit {LIMIT:.0%}); written to {path}")
    return 0 if figures["within_limit"] else 1


def _pair(index: int, steps: int) -> tuple[float, float]:
    """Seconds a step of `plinth run` and of torchrun."""
    sides = (run_job, run_bare) if index % 2 == 0 else (run_bare, run_job)
    found = {}
    for side in sides:
        with tempfile.TemporaryDirectory(prefix="ray-overhead-") as name:
            found[side] = side(Path(name), _job(Path(name), WARM_UP_STEPS + steps))
    ours, bare = found[run_job], found[run_bare]
    tell(f"pair {index + 1}: {ours:.4f} and {bare:.4f} s a step, {1 - bare / ours:+.1%}")
    return ours, bare


def _job(folder: Path, steps: int) -> Path:
    """The demo's job for one worker, which evaluates nothing, and its corpus."""
    corpus = folder / "home" / "volumes" / "corpora" / "pycode" / "train-00000.jsonl"
    corpus.parent.mkdir(parents=True)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:FILES]
    texts = (path.read_text(encoding="utf-8", errors="ignore") for path in files)
    corpus.write_text("".join(json.dumps({"content": text}) + "\n" for text in texts))
    job = yaml.safe_load(DEMO.read_text())
    spec = job["spec"]
    del spec["data"]["validation"], spec["evaluation"], spec["training"]["schedule"]
    spec["training"] |= {"steps": steps, "globalBatchSize": ROWS, "microBatchSize": ROWS}
    spec["compute"]["workers"] = 1
    spec["checkpoint"]["everySteps"] = SAVED_EVERY
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def run_job(folder: Path, job: Path) -> float:
    """Train the job with `plinth run`; seconds a step."""
    home = folder / "home"
    command = [sys.executable, "-m", "plinth_workloads.cli", "run", str(job), "--home", str(home)]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        ended, pinned = threading.Event(), threading.Event()
        pinning = threading.Thread(target=_keep_pinned, args=(process.pid, ended, pinned))
        pinning.start()
        try:
            code = process.wait()
        finally:
            ended.set()
            pinning.join()
    if code:
        raise RuntimeError(f"plinth run ended with {code}:\n{(folder / 'output').read_text()[-2000:]}")
    if not pinned.is_set():
        raise RuntimeError(f"no process was called {_WORKER_TITLE.decode()}: Ray names its workers otherwise now")
    (run,) = (home / "runs").iterdir()
    steps = {event["step"]: event["time"] for event, _ in read_progress(run) if event["event"] == "step"}
    last = max(steps)
    return float((steps[last] - steps[WARM_UP_STEPS]) / (last - WARM_UP_STEPS))


def _keep_pinned(root: int, ended: threading.Event, pinned: threading.Event) -> None:
    """Once the worker is there, give it the first core and all other processes of the run the second; sets `pinned`."""
    while not ended.wait(_LOOK_SECONDS):
        family = _descendants(root)
        workers = {process for process in family if _title(process).startswith(_WORKER_TITLE)}
        if not workers:
            continue
        for process in family:
            _pin(process, WORKER_CORE if process in workers else OTHER_CORE)
        pinned.set()


def _descendants(root: int) -> set[int]:
    """A process and all below it: Ray's daemons are children of the driver, workers of a daemon."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    family = {root}
    while more := {process for process, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _title(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def _pin(process: int, cores: set[int]) -> None:
    try:
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)
    except OSError:
        # It has ended in between.
        return


def run_bare(folder: Path, job: Path) -> float:
    """Train the same run document with a bare loop under torchrun; seconds a step."""
    (manifest,) = load_manifests([job])
    run = _run_of(manifest, folder)
    document, found = folder / "run.json", folder / "found.json"
    document.write_text(run.model_dump_json(by_alias=True))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    this = str(Path(__file__).resolve())
    subprocess.run([sys.executable, *torchrun, this, "--bare", str(document), str(found)], check=True)
    seconds: float = json.loads(found.read_text())
    return seconds


def _run_of(manifest: Manifest, folder: Path) -> TrainRun:
    return resolve_train_run(manifest.resource, Home(folder / "home").settings(manifest.resource), {})  # type: ignore[arg-type]


def train_bare(run: TrainRun) -> float:
    """The bare loop, on the first core with one thread; seconds a step after the warm-up."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), WORKER_CORE)
    torch.set_num_threads(1)
    data = prepare_data(run, None)
    model = load_for_training(run, data.tokenizer, None)
    loss = CausalLMLoss(model).train()
    choose_products(model, run)
    prepare_blocks(model, run, same_width=True)
    optimizers = build_optimizers(model, run.training)
    loader = BatchLoader(
        Rows(data.store, run.training.sequence_length, data.tokenizer.pad_token_id),
        lambda epoch: plan_training_epoch(run, data, epoch),
        global_batch_size=ROWS,
        micro_batch_size=ROWS,
    )
    assert run.training.steps is not None
    batches = [batch for _ in range(run.training.steps) for batch in loader.next_step()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for step, batch in enumerate(batches):
        if step == WARM_UP_STEPS:
            started = time.perf_counter()
        (loss(**batch.inputs) / batch.num_targets).backward()
        nn.utils.clip_grad_norm_(trainable, run.training.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - started) / (len(batches) - WARM_UP_STEPS)


def tell(text: str) -> None:
    """A line of progress."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
