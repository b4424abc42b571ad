"""MLflow as the chart runs it: the rendered command with the rendered variables and files, as a process here.

What differs from its pod are the folders that its volumes would be mounted at, and the port.
"""

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from charts import container, of_kind
from servers import free_port

_PORT = 5000


class ChartMlflow:
    """The server of rendered documents; it has no variable that its pod would not have."""

    def __init__(self, documents: list[dict[str, Any]], folder: Path) -> None:
        self._folder = folder
        self._rendered = container(documents, "mlflow")
        (secret,) = of_kind(documents, "Secret")
        self._secret = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.admin = (self._secret["username"], self._secret["password"])
        self.log = folder / "mlflow.log"
        self._process: subprocess.Popen[bytes] | None = None
        for mount in self._rendered["volumeMounts"]:
            Path(self._here(mount["mountPath"])).mkdir(parents=True)
        (config,) = of_kind(documents, "ConfigMap")
        for name, text in config["data"].items():
            Path(self._here(f"/etc/mlflow/{name}")).write_text(self._here(text))

    def start(self) -> None:
        """Start it and wait until its probe is answered."""
        words = [*self._rendered["command"], *self._rendered["args"]]
        assert words.pop(0) == "python"
        command = [sys.executable, *(self._here(word).replace(str(_PORT), str(self.port)) for word in words)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._here(self._rendered["workingDir"]),
                env=self._environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        path = self._rendered["startupProbe"]["httpGet"]["path"]
        deadline = time.monotonic() + 180
        while not self._answers(path):
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.5)

    def stop(self) -> None:
        """End it and everything that it started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, 9)
            self._process.wait()

    def add_namespace(self, *arguments: str) -> tuple[str, str]:
        """Run the chart's program in the server's pod; the user and the password of the Secret that it prints."""
        script = self._here("/etc/mlflow/add_namespace.py")
        command = [sys.executable, script, "--server", self.uri, *arguments]
        answer = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        secret = json.loads(answer.stdout)
        assert secret["metadata"]["name"] == "plinth-mlflow"
        assert secret["metadata"]["namespace"] == arguments[0]
        data = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
        return data["MLFLOW_TRACKING_USERNAME"], data["MLFLOW_TRACKING_PASSWORD"]

    def _environment(self) -> dict[str, str]:
        """The container's variables, and the search path that every image has."""
        environment = {"PATH": os.environ["PATH"]}
        for variable in self._rendered["env"]:
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            environment[variable["name"]] = self._secret[source["key"]] if source else self._here(variable["value"])
        return environment

    def _here(self, text: str) -> str:
        for path in ("/var/lib/mlflow", "/etc/mlflow"):
            text = text.replace(path, f"{self._folder}{path}")
        return f"{self._folder}/tmp" if text == "/tmp" else text

    def _answers(self, path: str) -> bool:
        try:
            return httpx.get(f"{self.uri}{path}", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False
