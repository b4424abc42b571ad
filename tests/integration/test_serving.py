"""A real Ray Serve, started by the entry point as a process, asked by OpenAI's own client."""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from serving_processes import free_port, read_event, ready_service, start_service, write_serve_json
from unit.plinth_workloads.serving.tiny_model import CONTEXT_LENGTH, greedy_text, make_model, make_tokenizer

pytestmark = pytest.mark.integration

CHAT = [{"role": "user", "content": "hi"}]


def save_model(folder: Path) -> Path:
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    folder = tmp_path_factory.mktemp("serving")
    with ready_service(write_serve_json(folder, save_model(folder / "model"))) as running:
        yield running


@pytest.fixture
def client(service: tuple["subprocess.Popen[bytes]", str]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service[1]}/v1", api_key="none", max_retries=0)


def test_the_model_is_listed(client):
    (model,) = client.models.list().data
    assert (model.id, Path(model.root).name) == ("tiny", "model")


def test_a_completion_is_what_the_model_says(client):
    answer = client.completions.create(model="tiny", prompt="abc", max_tokens=30, temperature=0)

    assert answer.choices[0].text == greedy_text(make_model(), "abc", 30)
    assert answer.usage.prompt_tokens == 3


def test_a_chat_is_answered_whole_and_streamed(client):
    parameters = {"model": "tiny", "messages": CHAT, "max_tokens": 30, "seed": 1}
    whole = client.chat.completions.create(**parameters)
    chunks = list(client.chat.completions.create(**parameters, stream=True, stream_options={"include_usage": True}))

    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize("given", ["ticket 17", None])
def test_an_answer_through_serve_has_one_id(service, given):
    headers = {} if given is None else {"X-Request-Id": given}
    (told,) = httpx.get(f"{service[1]}/v1/models", headers=headers).headers.get_list("X-Request-Id")
    assert told == given or given is None


def test_a_body_that_is_too_large_is_refused_through_serve_and_counted(service):
    content = b"[" * (5 * 2**20)
    refused = httpx.post(f"{service[1]}/v1/completions", content=content, timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
    scrape = httpx.get(f"{service[1]}/metrics", timeout=60).text
    assert 'plinth_requests_total{endpoint="/v1/completions",model_name="",status="413"} 1.0' in scrape


def test_the_chat_page_comes_through_serve_under_its_policy(service):
    for path, kind in (("/", "text/html"), ("/page/main.js", "text/javascript")):
        answer = httpx.get(f"{service[1]}{path}", timeout=60)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_eight_at_once_are_answered_as_if_alone(client):
    def ask(seed):
        answer = client.completions.create(model="tiny", prompt="abc", max_tokens=60, seed=seed)
        return answer.choices[0].text

    alone = [ask(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone


def test_errors_are_openai_s(client):
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        client.completions.create(model="other", prompt="p")
    with pytest.raises(openai.BadRequestError, match="suffix is not supported"):
        client.completions.create(model="tiny", prompt="p", suffix="s")
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="tiny", prompt="p", max_tokens=CONTEXT_LENGTH)
    assert raised.value.code == "context_length_exceeded"


def test_a_client_that_goes_away_frees_its_row(service):
    url = service[1]
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 120, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + 5
    while httpx.get(f"{url}/-/state").json()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_health_and_state(service):
    url = service[1]

    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    assert httpx.get(f"{url}/-/state").json()["errors"] == 0


def test_a_port_in_use_is_said_before_ray_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start_service(write_serve_json(tmp_path, tmp_path), "--port", str(port))
        event = read_event(process)

    assert event["message"] == f"port {port} is in use; choose another with --port"
    assert process.wait(timeout=10) == 2


def test_sigterm_while_starting_ends_it(tmp_path):
    process = start_service(write_serve_json(tmp_path, save_model(tmp_path / "model")), "--port", str(free_port()))
    time.sleep(3)
    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=30) == 0
