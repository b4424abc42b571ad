"""What Ray Train, tracking and checkpoints cost a training: `plinth run` of one worker beside torchrun on a bare loop.

Both train a llama of 7 million weights on the standard library's source with the same rows a step. `plinth run` is the
whole of it: Ray's processes, the worker under Ray Train, an MLflow run in SQLite, progress, a checkpoint every 25
steps, which is every 20 seconds. The bare loop has its batches ready and is forward, backward, clipping and step, in
one process that torchrun starts. Both are there at once and share the first core, everything else has the second: one
worker stands still (SIGSTOP) while the other trains, and they change every eight seconds, so that what else the machine
does meets both. A step counts if it is not cut by a change. Exits with 1 where the median of the pairs is above the
limit.

    python benchmarks/ray_overhead.py [--pairs 5] [--steps 50]
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import yaml
from torch import nn

from cores import pin
from observation import cpu_seconds
from plinth_api.resolve import resolve_train_run
from plinth_api.run import TrainRun
from plinth_workloads.data.loader import BatchLoader, Rows
from plinth_workloads.data.prepare import plan_training_epoch, prepare_data
from plinth_workloads.local import Home
from plinth_workloads.manifests import load_manifests
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
WARM_UP_STEPS = 5
ROWS = 4
SAVED_EVERY = 25
SIZES = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "num_attention_heads": 8}
FILES = 200
WORKER_CORE, OTHER_CORE = {0}, {1}
TURN_SECONDS = 8.0
_SPARE_STEPS = 50
"""So that the run does not end while it is measured."""
_PREPARED = 64
"""Batches of the bare loop, which begins again behind the last."""
_WORKER_TITLE = b"ray::RayTrainWorker"
_LOOK_SECONDS = 0.05
_READY_SECONDS = 180.0


@dataclass(slots=True)
class _Side:
    """A worker that takes turns with the other one.

    Attributes:
        process: It.
        turns: When each of its turns began and ended, in seconds since the epoch.
        cpu_seconds: Of processor time that all its threads took in them.
    """

    process: int
    turns: list[tuple[float, float]] = field(default_factory=list)
    cpu_seconds: float = 0.0

    def take_turn(self) -> None:
        """Go on for some seconds."""
        cpu, began = cpu_seconds(self.process), time.time()
        os.kill(self.process, signal.SIGCONT)
        time.sleep(TURN_SECONDS)
        os.kill(self.process, signal.SIGSTOP)
        self.turns.append((began, time.time()))
        self.cpu_seconds += cpu_seconds(self.process) - cpu

    def cost(self, ends: Sequence[float]) -> "_Cost":
        """Of a step, from when each ended; one begins where the one before has ended."""
        turns = [[end for end in ends if began <= end <= ended] for began, ended in self.turns]
        whole = [end - start for turn in turns for start, end in pairwise(turn)]
        return _Cost(statistics.fmean(whole), self.cpu_seconds / sum(map(len, turns)))


class _Cost(NamedTuple):
    """Of a step: seconds of those that one turn has whole, and of processor time over all that ended in turns."""

    wall: float
    cpu: float


def main() -> int:
    """Run the pairs, print them and write the record; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="at least 2")
    parser.add_argument("--steps", type=int, default=50, help="steps of `plinth run` that count")
    parser.add_argument("--bare", nargs=2, type=Path, metavar=("RUN", "TIMES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        document, times = arguments.bare
        train_bare(TrainRun.model_validate_json(document.read_text()), times)
    pairs = [_pair(index, arguments.steps) for index in range(arguments.pairs)]
    costs = [1 - bare.wall / ours.wall for ours, bare in pairs]
    figures = {
        "cost_share": spread(costs),
        "limit_share": LIMIT,
        "within_limit": statistics.median(costs) < LIMIT,
        "cost_share_cpu_time": spread([1 - bare.cpu / ours.cpu for ours, bare in pairs]),
        "step_seconds": spread([ours.wall for ours, _ in pairs]),
        "bare_step_seconds": spread([bare.wall for _, bare in pairs]),
        "deviation_of_the_cost": round(statistics.stdev(costs), 4),
        "pairs": [{"plinth_run": ours._asdict(), "torchrun": bare._asdict()} for ours, bare in pairs],
    }
    settings = {
        "job": str(DEMO.relative_to(REPOSITORY)),
        "sizes": SIZES,
        "rows_a_step": ROWS,
        "checkpoint_every_steps": SAVED_EVERY,
        "pairs": arguments.pairs,
        "steps": arguments.steps,
        "warm_up_steps": WARM_UP_STEPS,
        "turn_seconds": TURN_SECONDS,
        "cores": "both workers on the first, in turns, everything else on the second",
    }
    packages = ("torch", "ray", "mlflow", "transformers")
    path = write_record("ray_overhead", torch.device("cpu"), settings, figures, packages=packages, has_own_load=True)
    tell(f"all of it costs {statistics.median(costs):.1%} of a step (limit {LIMIT:.0%}); written to {path}")
    return 0 if figures["within_limit"] else 1


def _pair(index: int, steps: int) -> tuple[_Cost, _Cost]:
    """A step of `plinth run` and of torchrun."""
    with tempfile.TemporaryDirectory(prefix="ray-overhead-") as name, ExitStack() as stack:
        folder = Path(name)
        job = _job(folder, WARM_UP_STEPS + steps + _SPARE_STEPS)
        (manifest,) = load_manifests([job])
        settings = Home(folder / "home").settings(manifest.resource)
        run = resolve_train_run(manifest.resource, settings, {})  # type: ignore[arg-type]
        document, times = folder / "run.json", folder / "times"
        document.write_text(run.model_dump_json(by_alias=True))
        plinth = stack.enter_context(_started(["-m", "plinth_workloads.cli", "run", job, "--home", folder / "home"]))
        worker = _wait(lambda: _ray_worker(plinth.pid), "Ray's worker")
        _pin_all(plinth.pid, worker)
        _wait(lambda: len(_events(settings.work_dir)) > WARM_UP_STEPS, "the first steps of plinth run")
        _pin_all(plinth.pid, worker)
        os.kill(worker, signal.SIGSTOP)
        stack.callback(_go_on, worker)
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", Path(__file__).resolve())
        stack.enter_context(_started([*torchrun, "--bare", document, times]))
        _wait(lambda: times.exists() and len(_lines(times)) > WARM_UP_STEPS, "the first steps of torchrun")
        loop = int(_lines(times)[0])
        os.kill(loop, signal.SIGSTOP)
        stack.callback(_go_on, loop)
        sides = [_Side(worker), _Side(loop)]
        while len(_events(settings.work_dir)) < WARM_UP_STEPS + steps:
            for side in sides[:: -1 if index % 2 else 1]:
                side.take_turn()
        ours = sides[0].cost(_events(settings.work_dir))
        plain = sides[1].cost([float(line) for line in _lines(times)[1:]])
    tell(
        f"pair {index + 1}: {ours.wall:.4f} and {plain.wall:.4f} s a step, {1 - plain.wall / ours.wall:+.1%}; "
        f"processor time {1 - plain.cpu / ours.cpu:+.1%}"
    )
    return ours, plain


@contextmanager
def _started(command: Sequence[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with all below it."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        family = _descendants(process.pid)
        process.terminate()
        process.wait(_READY_SECONDS)
        _wait(lambda: not any(Path(f"/proc/{each}").exists() for each in family), "the end of what was started")


def _go_on(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)


def _wait(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(_LOOK_SECONDS)
    raise TimeoutError(f"{what} did not come in {_READY_SECONDS:.0f} s")


def _events(work_dir: str) -> list[float]:
    """When each step of `plinth run` ended."""
    return [event["time"] for event, _ in read_progress(Path(work_dir)) if event["event"] == "step"]


def _lines(path: Path) -> list[str]:
    """The complete lines of a file that grows."""
    return path.read_text().split("\n")[:-1]


def _job(folder: Path, steps: int) -> Path:
    """The demo's job with a larger model and one worker, which evaluates nothing, and its corpus."""
    corpus = folder / "home" / "volumes" / "corpora" / "pycode" / "train-00000.jsonl"
    corpus.parent.mkdir(parents=True)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:FILES]
    texts = (path.read_text(encoding="utf-8", errors="ignore") for path in files)
    corpus.write_text("".join(json.dumps({"content": text}) + "\n" for text in texts))
    job = yaml.safe_load(DEMO.read_text())
    spec = job["spec"]
    del spec["data"]["validation"], spec["evaluation"], spec["training"]["schedule"]
    spec["training"] |= {"steps": steps, "globalBatchSize": ROWS, "microBatchSize": ROWS}
    spec["model"]["config"] |= SIZES | {"num_key_value_heads": SIZES["num_attention_heads"]}
    spec["compute"]["workers"] = 1
    spec["checkpoint"]["everySteps"] = SAVED_EVERY
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def _ray_worker(root: int) -> int | None:
    """Ray Train's worker below a process."""
    return next((each for each in _descendants(root) if _title(each).startswith(_WORKER_TITLE)), None)


def _pin_all(root: int, worker: int) -> None:
    """Give a worker the first core, and all other processes of its run the second."""
    for process in _descendants(root):
        pin(process, WORKER_CORE if process == worker else OTHER_CORE)


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


def train_bare(run: TrainRun, times: Path) -> NoReturn:
    """The bare loop, on the first core with one thread, until it is ended; writes its process and each step's end."""
    pin(os.getpid(), WORKER_CORE)
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
    batches = [batch for _ in range(_PREPARED) for batch in loader.next_step()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with times.open("w", buffering=1) as file:
        file.write(f"{os.getpid()}\n")
        for batch in cycle(batches):
            (loss(**batch.inputs) / batch.num_targets).backward()
            nn.utils.clip_grad_norm_(trainable, run.training.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            file.write(f"{time.time()}\n")
    raise AssertionError("batches never end")


def tell(text: str) -> None:
    """A line of progress."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
