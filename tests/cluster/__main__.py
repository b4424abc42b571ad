"""`python -m cluster`: a control plane with KubeRay, MLflow and, once it is there, the operator, until Ctrl-C.

Prints the `export KUBECONFIG=...` of it. Nothing outlives the command; `--folder` says where logs stay.
"""

import argparse
import importlib.util
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.control_plane import ControlPlane
from cluster.processes import Processes
from servers import MlflowServer

CLAIMS = ("corpora", "checkpoints", "plinth")
OPERATOR = "plinth_operator"


def claim(name: str) -> dict[str, Any]:
    """A volume claim that stays Pending: there is nothing here that makes volumes."""
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "10Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def say(text: str) -> None:
    """A line for whoever started this."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def leave(*_: object) -> None:
    """End what was started so far, which a second signal does not interrupt."""
    for expected in (signal.SIGINT, signal.SIGTERM):
        signal.signal(expected, signal.SIG_IGN)
    raise SystemExit(0)


def main() -> None:
    """Start everything, wait for a signal, end everything."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where logs and data go; a temporary folder if not given")
    parser.add_argument("--no-operator", action="store_true", help="leave the operator to you")
    parser.add_argument("--nodes", type=int, default=0, help="that many nodes on paper for the scheduler")
    options = parser.parse_args()
    for expected in (signal.SIGINT, signal.SIGTERM):
        signal.signal(expected, leave)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plinth-cluster-")))
        folder = folder.resolve()
        plane = stack.enter_context(ControlPlane(folder / "control-plane", scheduler=True, kuberay=True))
        plane.apply([claim(name) for name in CLAIMS])
        for number in range(options.nodes):
            plane.add_node(f"paper-{number}")
        (folder / "mlflow").mkdir(exist_ok=True)
        mlflow = MlflowServer(folder / "mlflow")
        stack.callback(mlflow.stop)
        mlflow.start()
        if importlib.util.find_spec(OPERATOR) and not options.no_operator:
            operator = Processes(folder)
            stack.callback(operator.stop_all)
            environment = {"KUBECONFIG": str(plane.kubeconfig), "PLINTH_TRACKING_URI": mlflow.uri}
            # It runs in a folder of its own: relative entries would be lost.
            paths = [str(Path(entry).resolve()) for entry in sys.path if entry]
            environment["PYTHONPATH"] = os.pathsep.join(paths)
            operator.start(OPERATOR, [sys.executable, "-m", OPERATOR], environment)
            say(f"# operator log: {operator.log(OPERATOR)}")
        say(f"export KUBECONFIG={plane.kubeconfig}")
        say(f"# kubectl: {plane.kubectl()}")
        say(f"# MLflow: {mlflow.uri}")
        say("# Ctrl-C ends it")
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
