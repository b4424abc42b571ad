"""What happened to a team's resources and when: seen by looking often, told as a table and kept as JSON."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError

from plinth_workloads.train.progress import read_progress
from repeating import Repeating
from teams import Document, Team

PLURALS = ("pretrainjobs", "finetunejobs", "modelservices")


@dataclass
class Timeline(Repeating):
    """Events of one namespace, in seconds since the start; looked for until the end of the block."""

    pause_seconds = 0.3

    team: Team
    events: list[Document] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    _seen: set[tuple[str, str]] = field(default_factory=set)

    def add(self, name: str, what: str, at: float | None = None) -> None:
        """Something that happened, once; `at` in seconds since the epoch, now where it is missing."""
        if (name, what) not in self._seen:
            self._seen.add((name, what))
            self.events.append({"name": name, "what": what, "seconds": round((at or time.time()) - self.started, 2)})

    def seconds(self, name: str, what: str) -> float:
        """When something happened."""
        (found,) = (event["seconds"] for event in self.events if (event["name"], event["what"]) == (name, what))
        return float(found)

    def add_training(self, name: str, metrics: dict[str, list[Document]]) -> None:
        """What the run itself recorded: its first step and its checkpoints."""
        for metric, what in {"train/loss": "step", "train/checkpoint_step": "checkpoint"}.items():
            for point in metrics[metric][:1]:
                self.add(name, f"first {what}", point["timestamp"] / 1000)

    def add_progress(self, name: str, folder: Path) -> None:
        """What the first worker wrote into its work folder: when Ray had started it, when it was ready to train."""
        told = {"run": "first worker has its run", "preparing": "preparing data", "started": "model ready"}
        for event, _ in read_progress(folder):
            if event["event"] in told:
                self.add(name, told[event["event"]], event["time"])

    def write(self, path: Path) -> None:
        """Keep it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.sorted(), indent=1) + "\n")

    def sorted(self) -> list[Document]:
        """The events, the earliest first."""
        return sorted(self.events, key=lambda event: float(event["seconds"]))

    def table(self) -> str:
        """For people."""
        return "\n".join(f"{event['seconds']:8.1f} s  {event['name']:<24} {event['what']}" for event in self.sorted())

    def once(self) -> None:
        """Look at everything."""
        # A control plane that is being restarted is looked at again.
        with suppress(URLError, OSError):
            self._look()

    def _look(self) -> None:
        plane, base = self.team.node.plane, f"namespaces/{self.team.name}"
        for plural in PLURALS:
            for found in plane.request("GET", f"/apis/plinth.dev/v1alpha1/{base}/{plural}")["items"]:
                status = found.get("status", {})
                state = " ".join(filter(None, (status.get("phase"), status.get("reason"))))
                if state:
                    self.add(found["metadata"]["name"], state)
        for pod in plane.request("GET", f"/api/v1/{base}/pods")["items"]:
            self._look_at_pod(pod)

    def _look_at_pod(self, pod: Document) -> None:
        labels = pod["metadata"].get("labels", {})
        owner, attempt = labels.get("plinth.dev/name"), labels.get("plinth.dev/attempt", "")
        if owner is None:
            return
        role = labels.get("ray.io/node-type", "submitter")
        name = f"{owner} {attempt}".strip()
        conditions = {found["type"]: found["status"] for found in pod["status"].get("conditions", ())}
        self.add(name, f"{role} pod created")
        if conditions.get("PodScheduled") == "True":
            self.add(name, f"{role} pod scheduled")
        states = [found["state"] for found in pod["status"].get("containerStatuses", ())]
        if any("running" in state for state in states):
            self.add(name, f"{role} pod running")
        if conditions.get("Ready") == "True":
            self.add(name, f"{role} pod ready")
