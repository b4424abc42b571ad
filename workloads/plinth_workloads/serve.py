"""Entry point: serve.json enters, a local Ray Serve answers until it is told to stop.

One line of JSON on stdout says when the service is ready, or why it never will be:
{"event": "ready", "url": ...} or {"event": "failed", "reason": ..., "message": ...}.
"""

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from plinth_api.quantity import whole_cpus
from plinth_api.run import ServeRun

logger = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_USAGE = 2

_APPLICATION = "plinth"
_OBJECT_STORE_BYTES = 100_000_000
_POLL_SECONDS = 0.25


class _Terminated(BaseException):
    """A signal said to stop; not an Exception, so that no library swallows it."""


class _ServeFailed(Exception):
    def __init__(self, reason: str, message: str, *, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.reason = reason
        self.exit_code = exit_code


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or, where asked for, the end of stdin; the exit code."""
    arguments = _parse_arguments(argv)
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, _terminate)
    if arguments.exit_with_parent:
        threading.Thread(target=_terminate_at_end_of_stdin, daemon=True).start()
    try:
        run = _read_run(arguments.run)
        _check_engine(run)
        _check_port_free(arguments.host, arguments.port)
        _start(run, arguments.host, arguments.port)
        url = _url_of(arguments.host, arguments.port)
        _wait_ready(url, arguments.timeout)
        _report({"event": "ready", "url": url})
        threading.Event().wait()
    except _ServeFailed as failure:
        _report({"event": "failed", "reason": failure.reason, "message": str(failure)})
        return failure.exit_code
    except (_Terminated, SystemExit):  # SystemExit: from ray.init's own handler, until ours is back in place
        return 0
    finally:
        _stop()
    return 0


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m plinth_workloads.serve", description="Serve a model locally.")
    parser.add_argument("run", type=Path, help="a ServeRun as JSON")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds until the model must answer")
    parser.add_argument("--exit-with-parent", action="store_true", help="stop at the end of stdin")
    return parser.parse_args(argv)


def _read_run(path: Path) -> ServeRun:
    try:
        return ServeRun.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _ServeFailed("InvalidSpec", f"{path} cannot be read: {error.strerror}", exit_code=EXIT_USAGE) from error
    except ValidationError as error:
        raise _ServeFailed("InvalidSpec", f"{path} is not a serve.json: {error}", exit_code=EXIT_USAGE) from error


def _check_engine(run: ServeRun) -> None:
    if run.engine == "vllm":
        message = "spec.engine: engine vllm serves on clusters; leave it out on this machine, and torch serves"
        raise _ServeFailed("InvalidSpec", message, exit_code=EXIT_USAGE)


def _check_port_free(host: str, port: int) -> None:
    """Serve would retry and report the port deep in a log of its own."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"port {port} is in use; choose another with --port"
            raise _ServeFailed("PortInUse", message, exit_code=EXIT_USAGE) from error


def _start(run: ServeRun, host: str, port: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from plinth_workloads.serving.app import build_app

    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        # What the replicas ask for, not what the machine has: a laptop may serve with fewer cores than a cluster.
        num_cpus=whole_cpus(run.cpus) * run.scaling.max_replicas,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    # ray.init puts its own in place.
    signal.signal(signal.SIGTERM, _terminate)
    _check_gpus(run, int(ray.cluster_resources().get("GPU", 0)))
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
    try:
        serve.run(build_app(run.to_wire()), name=_APPLICATION, logging_config=quiet)
    except Exception as error:
        raise _ServeFailed("RuntimeUnhealthy", f"Ray Serve did not start the application: {error}") from error


def _check_gpus(run: ServeRun, num_gpus: int) -> None:
    wanted = run.gpus * max(1, run.scaling.min_replicas)
    if wanted > num_gpus:
        raise _ServeFailed("Unschedulable", f"the service asks for {wanted} GPUs, and this machine has {num_gpus}")


def _wait_ready(url: str, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    message = "no answer yet"
    while time.monotonic() < deadline:
        health = _health(url)
        if health.get("status") == "ok":
            return
        message = health.get("message", message)
        if health.get("status") == "failed":
            raise _ServeFailed("ModelLoadFailed", message)
        time.sleep(_POLL_SECONDS)
    raise _ServeFailed("StartupTimeout", f"not ready after {timeout_seconds:.0f} s: {message}")


def _health(url: str) -> dict[str, str]:
    """The body of /health; empty while there is none."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=60) as response:
            body = response.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    except OSError:
        return {}
    try:
        health = json.loads(body)
    except ValueError:
        return {}
    return health if isinstance(health, dict) else {}


def _stop() -> None:
    """End Serve, then Ray; a second signal does not interrupt it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "ray" not in sys.modules:
        return
    import ray
    from ray import serve

    if ray.is_initialized():
        try:
            serve.shutdown()
        except Exception:
            logger.warning("Ray Serve did not shut down cleanly", exc_info=True)
        ray.shutdown()


def _url_of(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def _terminate_at_end_of_stdin() -> None:
    # Bytes of the file descriptor: sys.stdin's lock, held by a daemon thread, would end the interpreter badly.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _report(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    sys.exit(main())
