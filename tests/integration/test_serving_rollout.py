"""New versions of a service on a real Ray Serve, step by step and under load: one is promoted, one is taken back."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from makers import make_model_service
from plinth_api.model_service import Canary
from plinth_api.run import ServeModel, ServeRun
from plinth_api.status import ModelStatus, RolloutStatus, ServiceStatus
from plinth_operator.facts import Observed, RayServiceFacts
from plinth_operator.plan.rayservice import build_serve_config
from plinth_operator.plan.rollout import plan_rollout
from plinth_operator.serving import replica_state
from serving_processes import SOURCES, free_port, write_serve_json
from unit.plinth_workloads.serving.tiny_model import CONTEXT_LENGTH, END_ID, greedy_text, make_model, make_tokenizer

pytestmark = pytest.mark.integration

TOKENS = 20


def make_slow_model():
    """As `make_model`, and many times its work."""
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=END_ID,
    )
    return LlamaForCausalLM(config).eval()


class Load:
    """Clients that ask without a pause; what they were answered, and with which status."""

    def __init__(self, url: str) -> None:
        self.answers: list[tuple[int, str]] = []
        self._url, self._ends = url, threading.Event()

    def _ask(self) -> None:
        body = {"model": "tiny", "prompt": "abc", "max_tokens": TOKENS, "temperature": 0}
        with httpx.Client(timeout=60) as client:
            while not self._ends.is_set():
                answer = client.post(f"{self._url}/v1/completions", json=body)
                text = answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.text
                self.answers.append((answer.status_code, text))

    @contextmanager
    def running(self, clients: int) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ends.set()
            for thread in threads:
                thread.join()


class Operator:
    """The operator's plan, without Kubernetes: it is told what replicas say, and Serve what it decides."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, run: ServeRun) -> None:
        self._process, self._url, self._run = process, url, run
        self.status, self.told, self.model = ServiceStatus(), ServeModel(uri=""), run.model
        self._wait_told()
        self.hand_over(run.model)
        self.wait_in_service(run.model.uri)
        self.look(Canary())

    def hand_over(self, model: ServeModel) -> None:
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

    def look(self, canary: Canary) -> RolloutStatus | None:
        now = datetime.now(UTC)
        replica = replica_state(httpx.get(f"{self._url}/-/state", timeout=30).content, now)
        seen = Observed(ray_services=(RayServiceFacts("RayService", "n", "s", "s", "u", 1),), replica=replica)
        model, rollout = plan_rollout(canary, self.model, self.status, seen, generation=1, now=now)
        self.hand_over(model)
        known = ModelStatus(name="tiny", version="1", uri=replica.model_uri) if replica.model_uri else None
        self.status = ServiceStatus(model=known, rollout=rollout)
        return rollout

    def roll_out(self, uri: str, canary: Canary) -> RolloutStatus:
        """How it ends."""
        self.model = ServeModel(uri=uri)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            rollout = self.look(canary)
            if rollout is not None and rollout.candidate.uri == uri and rollout.phase != "Progressing":
                return rollout
            time.sleep(0.2)
        raise AssertionError(f"no verdict: {self.status}")

    def wait_in_service(self, uri: str) -> None:
        deadline = time.monotonic() + 90
        while self._uri_in_service() != uri:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def _uri_in_service(self) -> str | None:
        answer = httpx.get(f"{self._url}/-/state", timeout=30)
        uri: str | None = answer.json().get("modelUri") if answer.status_code == 200 else None
        return uri


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three versions by URI."""
    found = {}
    for name, model in (("first", make_model()), ("second", make_model(seed=1)), ("slow", make_slow_model())):
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        found[f"file://{folder}"] = model
    return found


@pytest.fixture
def operator(tmp_path, models):
    """A service with the first version, and its operator."""
    first = next(iter(models))
    port = free_port()
    serve_json = write_serve_json(tmp_path, Path(first.removeprefix("file://")))
    run = ServeRun.model_validate_json(serve_json.read_bytes())
    tests = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "changing_service", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*SOURCES, tests])},
    )
    try:
        yield Operator(process, f"http://127.0.0.1:{port}", run)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def test_under_load_a_version_is_promoted_and_a_slow_one_taken_back_without_a_failed_request(operator, models):
    first, second, slow = models
    load = Load(operator._url)
    with load.running(clients=4):
        promoted = operator.roll_out(second, Canary(steps=(50,), interval_seconds=1, max_latency_increase=10))
        operator.wait_in_service(second)
        until_then = len(load.answers)
        taken_back = operator.roll_out(slow, Canary(steps=(50,), interval_seconds=1, max_latency_increase=1))
    assert (promoted.phase, promoted.stable.uri) == ("Promoted", first)
    assert (taken_back.phase, taken_back.reason, taken_back.stable.uri) == ("RolledBack", "HighLatency", second)
    assert [answer for answer in load.answers if answer[0] != 200] == []
    texts = {uri: greedy_text(model, "abc", TOKENS) for uri, model in models.items()}
    assert {text for _, text in load.answers[:until_then]} == {texts[first], texts[second]}
    assert {text for _, text in load.answers} == set(texts.values())
    assert operator.told == ServeModel(uri=second)
