"""A service without replicas on a real Ray Serve: it gets there while it is watched, and holds the next request."""

import time
from pathlib import Path

import httpx
import pytest

from integration.test_serving import save_model
from serving_processes import behind_haproxy, free_port, ready_service, write_serve_json

pytestmark = pytest.mark.integration


def is_up(probes: str) -> bool:
    """Whether there is a replica: asked as the operator asks, twenty times as often."""
    try:
        return httpx.get(f"{probes}/-/state").json()["loaded"] is True
    except httpx.TransportError:
        return False


def watch_until(probes: str, *, up: bool, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while is_up(probes) is not up:
        assert time.monotonic() < deadline
        time.sleep(0.25)


def test_an_idle_service_goes_to_zero_and_the_next_request_waits_for_a_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # How long Serve takes to hear of what replicas tell.
    monkeypatch.setenv("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
    monkeypatch.setenv("RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR", "0.02")
    # As on a cluster: the replica answers itself, and Serve's proxy those who come while there is none.
    for name, value in behind_haproxy(tmp_path).items():
        monkeypatch.setenv(name, value)
    model, port = save_model(tmp_path / "model"), free_port()
    serve_json = write_serve_json(
        tmp_path,
        model,
        model={"uri": f"file://{model}", "holdsRequests": True},
        scaling={"minReplicas": 0, "maxReplicas": 1, "targetOngoingRequests": 16, "idleSeconds": 3},
        probePort=port,
    )
    probes = f"http://127.0.0.1:{port}"
    with ready_service(serve_json) as (_, url):
        assert is_up(probes), "the model is tried before anybody asks"
        watch_until(probes, up=False)
        time.sleep(2)
        assert not is_up(probes), "watching wakes nobody"
        body = {"model": "tiny", "prompt": "abc", "max_tokens": 5}
        held = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
        assert (held.status_code, held.json()["usage"]["completion_tokens"]) == (200, 5)
        streamed = httpx.post(f"{url}/v1/completions", json={**body, "stream": True}, timeout=120)
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert len(streamed.headers.get_list("X-Request-Id", split_commas=True)) == 1
        metrics = httpx.get(f"{probes}/metrics").text
        assert 'plinth_requests_total{endpoint="/v1/completions",model_name="tiny",status="200"} 2.0' in metrics
