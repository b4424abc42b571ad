"""A job that is small and has no end of its own, for tests that disturb it: its resource, its data, every step it did.

What it did is read from the progress file on the volume of its checkpoints, line by line as its first worker wrote it:
MLflow would not know the last two seconds of a worker that was killed.
"""

import json
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.control_plane import wait_until
from makers import pretrain_document
from plinth_workloads.train.progress import read_progress
from teams import ENDED, Document, Team

KIND = "pretrainjob"
CLAIMS = Path(__file__).resolve().parents[1] / "examples" / "demo" / "data" / "claims.yaml"
CORPUS = "pvc://corpora/code.jsonl"
CORPUS_BYTES = 500_000
SAVE_EVERY = 20
FIRST_STEP_SECONDS = 420.0
"""From nothing to the first step, on a machine that has other work too."""


def add_storage(team: Team) -> Path:
    """The claims of the demo with some source code on one of them; the folder of the checkpoints."""
    corpora, checkpoints, _ = (team.volume(claim) for claim in ("corpora", "checkpoints", "plinth"))
    team.kubectl("apply", "-f", str(CLAIMS))
    size = 0
    with (corpora / "code.jsonl").open("w") as corpus:
        for source in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            text = source.read_text(errors="replace")
            corpus.write(json.dumps({"text": text}) + "\n")
            size += len(text)
            if size > CORPUS_BYTES:
                break
    return checkpoints


def small_job(name: str, **spec: Any) -> Document:
    """The resource: two workers, about two steps a second on two cores, a checkpoint every `SAVE_EVERY` of them."""
    defaults: Document = {
        "model": {
            "config": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 352},
            "tokenizer": {"train": {"vocabSize": 1024}},
        },
        "data": {"train": [{"uri": CORPUS}], "validation": None},
        "training": {
            "steps": 100_000,
            "sequenceLength": 256,
            "globalBatchSize": 8,
            "learningRate": 1e-3,
            "schedule": {"name": "constant"},
        },
        "compute": {"workers": 2, "perWorker": {"cpus": "200m", "memory": "2Gi"}},
        "checkpoint": {"uri": f"pvc://checkpoints/{name}", "everySteps": SAVE_EVERY, "keep": 2},
        "restart": {"maxRestarts": 20},
        "output": {"model": name},
    }
    return pretrain_document(name=name, **{**defaults, **spec})


class SmallJob:
    """One such job of a team, applied."""

    def __init__(self, team: Team, checkpoints: Path, document: Document) -> None:
        """Apply the resource."""
        self.team, self.name = team, str(document["metadata"]["name"])
        team.apply(document)
        uid = team.get(KIND, self.name)["metadata"]["uid"]
        self._work = checkpoints / self.name / ".work" / uid

    # ---- what it says

    def status(self) -> Document:
        """Its status."""
        return self.team.status(KIND, self.name)

    def attempts(self) -> list[Document]:
        """The attempts in its status."""
        found: list[Document] = self.status().get("attempts", [])
        return found

    def run_id(self) -> str:
        """Its run in MLflow."""
        return str(self.status()["tracking"]["runId"])

    def wait(self, is_there: Callable[[Document], Any], seconds: float, what: str) -> Document:
        """Wait until its status is as wanted; the status."""
        return self.team.wait(KIND, self.name, is_there, seconds, what=f"{self.name}: {what}")

    # ---- what it did

    def events(self) -> list[Document]:
        """Everything that its workers noted, in that order; times in seconds since the epoch."""
        return [event for event, _ in read_progress(self._work)]

    def steps(self) -> list[Document]:
        """The steps among that."""
        return [event for event in self.events() if event["event"] == "step"]

    def wait_steps(self, count: int, seconds: float, *, after: float | None = None) -> None:
        """Wait until so many steps were done after a moment, by default from now on."""
        since = time.time() if after is None else after

        def done() -> bool:
            return len([step for step in self.steps() if step["time"] > since]) >= count

        try:
            wait_until(done, seconds, f"{count} steps of {self.name}")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.team.story(KIND, self.name)}") from None

    def wait_training(self, seconds: float = FIRST_STEP_SECONDS) -> Document:
        """Wait until its newest attempt trains, by its own word and by its status; the status."""
        found = self.wait(_trains, seconds, "it trains")
        self.wait_steps(3, 60)
        return found

    def wait_restarted(self, since: float, seconds: float = FIRST_STEP_SECONDS) -> Document:
        """Wait until an attempt that began after a moment trains, by its own word and by its status; the status."""

        def first() -> Document | None:
            begun = [event for event in self.events() if event["event"] == "started" and event["time"] > since]
            if not begun and (phase := self.status().get("phase")) in ENDED:
                raise TimeoutError(f"{self.name} is {phase}, and will not begin")
            return begun[0] if begun else None

        try:
            started: Document = wait_until(first, seconds, f"the next attempt of {self.name}")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.team.story(KIND, self.name)}") from None
        self.wait_steps(3, 60, after=started["time"])

        def is_told(status: Document) -> bool:
            return _trains(status) and status["attempts"][-1]["fromStep"] == started["step"]

        return self.wait(is_told, 60, f"its status tells that it trains from step {started['step']} on")

    # ---- what is done to it

    def patch(self, spec: Mapping[str, Any]) -> None:
        """Change its spec as `kubectl patch --type=merge` does."""
        self.team.kubectl("patch", KIND, self.name, "--type=merge", "--patch", json.dumps({"spec": spec}))

    def run_in_worker(self, program: str, *, check: bool = True) -> str:
        """Run a Python program in the container of one of its workers; what it prints."""
        pod = self.team.pod(self.name, "worker")
        return self.team.kubectl("exec", pod, "--container=ray", "--", "python", "-c", program, check=check)

    def delete_pod(self, node_type: str, *flags: str) -> str:
        """Delete its head or one of its workers without waiting for the end; the name of the pod."""
        name = self.team.pod(self.name, node_type)
        self.team.kubectl("delete", "pod", name, "--wait=false", *flags)
        return name


def _trains(status: Document) -> bool:
    """Whether a status tells of steps that the newest attempt has done."""
    attempts = status.get("attempts") or [{}]
    started, step = attempts[-1].get("fromStep"), status.get("progress", {}).get("step")
    steps = started is not None and step is not None and step > started
    return bool(status.get("phase") == "Training" and steps)
