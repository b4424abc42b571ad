"""A service on a real Ray Serve of this machine whose versions change as the operator plans it, without Kubernetes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import yaml

from makers import make_model_service
from plinth_api.model_service import Canary
from plinth_api.run import ServeModel, ServeRun
from plinth_api.status import ModelStatus, RolloutStatus, ServiceStatus
from plinth_operator.facts import Observed, RayServiceFacts
from plinth_operator.plan.rayservice import build_serve_config
from plinth_operator.plan.rollout import plan_rollout
from plinth_operator.serving import replica_state
from serving_processes import SOURCES, free_port, write_serve_json

_LOAD_SECONDS = 90
_VERDICT_SECONDS = 120


class RolledOut:
    """The operator's plan: it is told what replicas say, and Serve what it decides.

    Attributes:
        url: Of the service.
        told: What replicas were told last.
    """

    def __init__(self, process: "subprocess.Popen[str]", url: str, run: ServeRun) -> None:
        self._process, self.url, self._run = process, url, run
        self._status, self.told, self._wanted = ServiceStatus(), ServeModel(uri=""), run.model
        self._wait_told()
        self._hand_over(run.model)
        self.wait_in_service(run.model.uri)
        self._look(Canary())

    def switch(self, uri: str) -> None:
        """Have another version at once; returns when it answers."""
        self._wanted = ServeModel(uri=uri)
        self._look(None)
        self.wait_in_service(uri)
        self._look(None)

    def roll_out(self, uri: str, canary: Canary) -> RolloutStatus:
        """How it ends."""
        self._wanted = ServeModel(uri=uri)
        deadline = time.monotonic() + _VERDICT_SECONDS
        while time.monotonic() < deadline:
            rollout = self._look(canary)
            if rollout is not None and rollout.candidate.uri == uri and rollout.phase != "Progressing":
                return rollout
            time.sleep(0.2)
        raise AssertionError(f"no verdict: {self._status}")

    def wait_in_service(self, uri: str) -> None:
        """Return when a version answers."""
        deadline = time.monotonic() + _LOAD_SECONDS
        while self._uri_in_service() != uri:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def _look(self, canary: Canary | None) -> RolloutStatus | None:
        now = datetime.now(UTC)
        replica = replica_state(httpx.get(f"{self.url}/-/state", timeout=30).content, now)
        seen = Observed(ray_services=(RayServiceFacts("RayService", "n", "s", "s", "u", 1),), replica=replica)
        model, rollout = plan_rollout(canary, self._wanted, self._status, seen, generation=1, now=now)
        self._hand_over(model)
        known = ModelStatus(name="tiny", version="1", uri=replica.model_uri) if replica.model_uri else None
        self._status = ServiceStatus(model=known, rollout=rollout)
        return rollout

    def _hand_over(self, model: ServeModel) -> None:
        if model == self.told:
            return
        assert self._process.stdin is not None
        config = build_serve_config(make_model_service(), self._run.model_copy(update={"model": model}))
        self._process.stdin.write(json.dumps(yaml.safe_load(config)) + "\n")
        self._process.stdin.flush()
        self._wait_told()
        self.told = model

    def _wait_told(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "told\n"

    def _uri_in_service(self) -> str | None:
        answer = httpx.get(f"{self.url}/-/state", timeout=30)
        uri: str | None = answer.json().get("modelUri") if answer.status_code == 200 else None
        return uri


@contextmanager
def rolled_out(folder: Path, first: Path) -> Iterator[RolledOut]:
    """A service named tiny with the version of a folder, until the end of the block."""
    port = free_port()
    run = ServeRun.model_validate_json(write_serve_json(folder, first).read_bytes())
    process = subprocess.Popen(
        [sys.executable, "-m", "changing_service", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*SOURCES, str(Path(__file__).parent)])},
    )
    try:
        yield RolledOut(process, f"http://127.0.0.1:{port}", run)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
