import json
import signal
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from plinth_workloads import serve


@contextmanager
def health_server(*answers):
    """Gives these answers to GET /health, the last one again and again; its URL."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def health(status, message="m"):
    return json.dumps({"status": status, "message": message})


def test_ready_once_health_is_ok():
    with health_server((404, "no route"), (503, health("loading")), (200, health("ok"))) as url:
        serve._wait_ready(url, 5)


def test_a_model_that_cannot_be_loaded_ends_the_wait_with_the_reason():
    with (
        health_server((503, health("loading")), (503, health("failed", "no such model"))) as url,
        pytest.raises(serve._ServeFailed, match="no such model") as raised,
    ):
        serve._wait_ready(url, 5)
    assert raised.value.reason == "ModelLoadFailed"


def test_the_wait_ends_with_what_was_said_last():
    with (
        health_server((503, health("loading", "m/1 is being loaded"))) as url,
        pytest.raises(serve._ServeFailed, match="not ready after 0 s: m/1 is being loaded") as raised,
    ):
        serve._wait_ready(url, 0.4)
    assert raised.value.reason == "StartupTimeout"


@pytest.fixture(autouse=True)
def _signal_handlers():
    """main puts its own in place."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_document_that_is_no_serve_json_is_said_in_one_line(tmp_path, capsys, content):
    path = tmp_path / "serve.json"
    if content is not None:
        path.write_text(content)

    assert serve.main([str(path)]) == 2
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["reason"]) == ("failed", "InvalidSpec")
    assert str(path) in event["message"]


def test_vllm_is_refused_on_this_machine_with_what_serves_here(tmp_path, capsys):
    document = {"name": "m", "engine": "vllm", "trackingUri": "", "gpus": 1, "cpus": 1, "workDir": "/work"}
    path = tmp_path / "serve.json"
    path.write_text(json.dumps(document))
    assert serve.main([str(path)]) == serve.EXIT_USAGE
    told = json.loads(capsys.readouterr().out)
    assert told["reason"] == "InvalidSpec"
    assert told["message"].startswith("spec.engine: engine vllm serves on clusters; leave it out on this machine")
