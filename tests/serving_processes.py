"""Services of this machine: a serve.json enters, the entry point as a process leaves."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plinth_api.engine_rules import SERVE_ENVIRONMENT

SOURCES = [str(Path(__file__).parents[1] / folder) for folder in ("operator", "workloads")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def behind_haproxy(folder: Path) -> dict[str, str]:
    """What Ray Serve reads of HAProxy: ports and files of its own, as other services may be on this machine."""
    first = free_port()
    return {
        **SERVE_ENVIRONMENT,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        # The path of a socket is short.
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"/tmp/haproxy-{first}.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"/tmp/haproxy-metrics-{first}.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 20),
        # Else a replica or a proxy that goes waits half a minute for those who still ask it.
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def write_serve_json(folder: Path, model_folder: Path, **changes: Any) -> Path:
    path = folder / "serve.json"
    run = {
        "version": 1,
        "name": "tiny",
        "engine": "torch",
        "model": {"uri": f"file://{model_folder}"},
        "trackingUri": f"sqlite:///{folder}/mlflow.db",
        "gpus": 0,
        "cpus": 1.0,
        "scaling": {"minReplicas": 1, "maxReplicas": 1, "targetOngoingRequests": 16},
        "workDir": str(folder / "work"),
        **changes,
    }
    path.write_text(json.dumps(run))
    return path


def start_service(serve_json: Path, *options: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)}
    return subprocess.Popen(
        [sys.executable, "-m", "plinth_workloads.serve", str(serve_json), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )


def read_event(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    assert process.stdout is not None
    event: dict[str, Any] = json.loads(process.stdout.readline())
    return event


@contextmanager
def ready_service(serve_json: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """A service that answers, and its URL; it ends with its stdin."""
    port = free_port()
    process = start_service(serve_json, "--port", str(port), "--exit-with-parent")
    try:
        assert read_event(process) == {"event": "ready", "url": f"http://127.0.0.1:{port}"}
        yield process, f"http://127.0.0.1:{port}"
    finally:
        assert process.stdin is not None
        process.stdin.close()
        began = time.monotonic()
        assert process.wait(timeout=30) == 0, "the end of stdin ends the service"
        assert time.monotonic() - began < 15
