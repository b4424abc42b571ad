"""The operator as a process, against a control plane of the tests and a real MLflow."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.control_plane import ControlPlane
from cluster.faulty_proxy import FaultyProxy
from cluster.kubeconfig import write_kubeconfig
from servers import free_port

ROOT = Path(__file__).resolve().parents[1]


class OperatorProcess:
    """`python -m plinth_operator`, started, ended and killed at will."""

    def __init__(self, folder: Path, kubeconfig: Path, tracking_uri: str, **settings: str) -> None:
        self._folder = folder
        self.log = folder / "operator.log"
        self.port = free_port()
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "PYTHONPATH": str(ROOT / "operator"),
            "PLINTH_TRACKING_URI": tracking_uri,
            "PLINTH_PROBE_PORT": str(self.port),
            "PLINTH_PROBE_HOST": "127.0.0.1",
            **{f"PLINTH_{name.upper()}": value for name, value in settings.items()},
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "OperatorProcess":
        """Start it, without waiting until it leads."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "plinth_operator"], env=self._environment, stderr=log, stdout=log
            )
        return self

    def stop(self) -> float:
        """SIGTERM; the seconds that it took to end."""
        assert self.process is not None
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=20)
        return time.monotonic() - started

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def get(self, path: str) -> str:
        """A page of its probes."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            text: str = answer.read().decode()
            return text


@dataclass
class Disturbed:
    """An operator that reaches the API server and MLflow only through proxies that can fail on purpose."""

    operator: OperatorProcess
    api: FaultyProxy
    mlflow: FaultyProxy


@contextmanager
def operator_behind_proxies(
    folder: Path, plane: ControlPlane, tracking_uri: str, **settings: str
) -> Iterator[Disturbed]:
    """Start one; its Lease is in a namespace of its own, so that it leads whoever else is there."""
    api = FaultyProxy(plane.url, plane.certificate, plane.certificate_key)
    with api, FaultyProxy(tracking_uri) as mlflow:
        kubeconfig = write_kubeconfig(folder / "kubeconfig", api.url, plane.token, certificate=plane.certificate)
        own = {"operator_namespace": plane.create_namespace(), **settings}
        operator = OperatorProcess(folder, kubeconfig, mlflow.url, **own).start()
        try:
            yield Disturbed(operator, api, mlflow)
        finally:
            operator.kill()
