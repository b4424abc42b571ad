"""The `plinth` command in a process of its own, as a person runs it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"},
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    "PYTHONDONTWRITEBYTECODE": "",
    "COLUMNS": "200",
}


def plinth_command(*arguments: str | Path) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "plinth_workloads.cli", *map(str, arguments)]


def start_plinth(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start the command; its standard output and error come in one stream."""
    return subprocess.Popen(
        plinth_command(*arguments),
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def plinth(*arguments: str | Path, **environment: str) -> tuple[int, str]:
    """Run the command to its end; exit code and everything that it printed."""
    process = start_plinth(*arguments, **environment)
    output, _ = process.communicate(timeout=280)
    return process.returncode, output


def write_yaml(path: Path, *documents: dict[str, Any]) -> Path:
    """Documents as a YAML file."""
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return path
