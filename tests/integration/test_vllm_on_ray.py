"""A service of vLLM on the real Ray Serve, HAProxy and ray.serve.llm, from the configuration that the operator renders.

Only vLLM is a stand-in: nobody has run these tests on a GPU.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from plinth_api.engine_rules import VLLM_ENVIRONMENT
from plinth_operator.status.words import recorded_failure
from rendering import SETTINGS, children_of, make
from serving_processes import SOURCES, behind_haproxy, free_port

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1]
WITH_VLLM = SETTINGS.model_copy(update={"vllm_image": "vllm:1", "tracking_uri": ""})
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


class Cluster:
    """What KubeRay does for a service: gives Serve its configuration."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, folder: Path) -> None:
        self._process, self.url, self.folder = process, url, folder

    def deploy(self, **changes: Any) -> dict[str, str]:
        """Deploy a service of the model `first` with two adapters, one of which is damaged; what became of it."""
        adapters = [{"name": name, "uri": f"file://{self.folder}/adapter"} for name in ("docs", "damaged")]
        spec = {"engine": "vllm", "compute": {"perReplica": {"gpus": 1}}, "adapters": adapters, **changes}
        spec.setdefault("model", {"uri": f"file://{self.folder}/first"})
        rendered = children_of(make("ModelService", **spec), WITH_VLLM)["RayService"]["spec"]["serveConfigV2"]
        config = yaml.safe_load(rendered)
        (application,) = config["applications"]
        # Where a pod has a volume.
        application["args"]["workDir"] = str(self.folder / "work")
        (deployment,) = application["deployments"]
        # Once is enough to know that there is no such model.
        deployment["max_constructor_retry_count"] = 1
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(config) + "\n")
        self._process.stdin.flush()
        told: dict[str, str] = json.loads(self._process.stdout.readline())
        return told

    def get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}{path}", timeout=60).json()
        return found

    def chat(self, **changes: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json={**CHAT, **changes}, timeout=60)


def save(folder: Path, **files: dict[str, Any]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "model.safetensors").touch()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder, port = tmp_path_factory.mktemp("vllm"), free_port()
    for name in ("first", "second"):
        save(folder / name, config={"architectures": ["LlamaForCausalLM"], "vocab_size": 8})
    save(folder / "adapter", adapter_config={"peft_type": "LORA", "r": 8, "base_model_name_or_path": "hf://a/b"})
    environment = {
        **os.environ,
        **VLLM_ENVIRONMENT,
        **behind_haproxy(folder),
        "PYTHONPATH": os.pathsep.join([*SOURCES, str(TESTS), str(TESTS / "stand_ins")]),
        "RAYLLM_VLLM_ENGINE_CLS": "vllm_engine.Engine",
        # What each worker process would import before it is asked for anything.
        "RAYLLM_ENABLE_WORKER_PROCESS_SETUP_HOOK": "0",
    }
    command = [sys.executable, str(TESTS / "vllm_on_ray.py"), str(port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    try:
        running = Cluster(process, f"http://127.0.0.1:{port}", folder)
        assert running.deploy()["status"] == "RUNNING"
        yield running
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)


def test_a_replica_answers_through_haproxy_with_the_model_and_the_adapters_that_it_has_fetched(cluster):
    state, models = cluster.get("/-/state"), cluster.get("/v1/models")["data"]
    assert state["modelUri"] == f"file://{cluster.folder}/first"
    assert [(one["name"], one.get("loadError", "")) for one in state["adapters"]] == [
        ("docs", ""),
        ("damaged", "Failed to load lora model: it is damaged"),
    ]
    assert {one["id"]: one["root"] for one in models} == {
        "tiny": f"{cluster.folder}/first",
        "docs": f"{cluster.folder}/adapter",
    }
    assert cluster.chat(model="docs").json()["asked"]["model"] == "docs"
    assert cluster.chat(model="damaged").status_code == 503


def test_a_request_has_one_id_and_a_stream_comes_through(cluster):
    answer = cluster.chat(stream=True)
    assert answer.text.endswith("data: [DONE]\n\n")
    assert len(answer.headers.get_list("X-Request-Id", split_commas=True)) == 1


def test_the_beginning_of_chats_changes_in_the_replica_that_runs(cluster):
    process = cluster.get("/v1/models")["data"][0]["process"]
    assert cluster.deploy(prompt={"system": "Be kind."})["status"] == "RUNNING"
    deadline = time.monotonic() + 30
    while not cluster.get("/-/state").get("promptHash") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [one["content"] for one in cluster.chat().json()["asked"]["messages"]] == ["Be kind.", "hi"]
    assert cluster.get("/v1/models")["data"][0]["process"] == process


def test_another_version_has_replicas_of_its_own_and_no_request_fails_that_is_sent_again_as_clients_do(cluster):
    statuses, over = [], threading.Event()

    def ask() -> None:
        # As OpenAI's client does: HAProxy may hear too late of a replica that goes, where a machine has too much to do.
        for pause in (0.5, 1.0, 0.0):
            status = cluster.chat().status_code
            if status != 503:
                break
            time.sleep(pause)
        statuses.append(status)

    def keep_asking() -> None:
        while not over.is_set():
            ask()

    asking = threading.Thread(target=keep_asking)
    asking.start()
    second = f"file://{cluster.folder}/second"
    try:
        assert cluster.deploy(model={"uri": second})["status"] == "RUNNING"
        deadline = time.monotonic() + 60
        while cluster.get("/-/state")["modelUri"] != second and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        over.set()
        asking.join()
    assert cluster.get("/-/state")["modelUri"] == second
    assert set(statuses) == {200}


def test_a_model_that_cannot_be_had_is_told_to_the_operator_and_the_version_before_goes_on(cluster):
    before = cluster.get("/-/state")["modelUri"]
    told = cluster.deploy(model={"uri": "file:///nothing/here"})
    assert told["status"] == "DEPLOY_FAILED"
    cause = recorded_failure(told["message"])
    assert cause is not None
    assert (cause.reason, "file:///nothing/here is not a folder" in cause.message) == ("ModelNotFound", True)
    assert cluster.get("/-/state")["modelUri"] == before
    assert cluster.chat().status_code == 200
