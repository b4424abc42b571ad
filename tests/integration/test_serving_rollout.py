"""New versions of a service on a real Ray Serve, step by step and under load: one is promoted, one is taken back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from plinth_api.model_service import Canary
from plinth_api.run import ServeModel
from rolled_out import rolled_out
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
def service(tmp_path, models):
    """A service with the first version."""
    with rolled_out(tmp_path, Path(next(iter(models)).removeprefix("file://"))) as running:
        yield running


def test_under_load_a_version_is_promoted_and_a_slow_one_taken_back_without_a_failed_request(service, models):
    first, second, slow = models
    load = Load(service.url)
    with load.running(clients=4):
        promoted = service.roll_out(second, Canary(steps=(50,), interval_seconds=1, max_latency_increase=10))
        service.wait_in_service(second)
        until_then = len(load.answers)
        taken_back = service.roll_out(slow, Canary(steps=(50,), interval_seconds=1, max_latency_increase=1))
    assert (promoted.phase, promoted.stable.uri) == ("Promoted", first)
    assert (taken_back.phase, taken_back.reason, taken_back.stable.uri) == ("RolledBack", "HighLatency", second)
    assert [answer for answer in load.answers if answer[0] != 200] == []
    texts = {uri: greedy_text(model, "abc", TOKENS) for uri, model in models.items()}
    assert {text for _, text in load.answers[:until_then]} == {texts[first], texts[second]}
    assert {text for _, text in load.answers} == set(texts.values())
    assert service.told == ServeModel(uri=second)
