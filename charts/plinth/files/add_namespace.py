"""Give a namespace its own user of MLflow, in MLflow's pod: `python add_namespace.py NAMESPACE`.

Enters: the namespace; the server's administrator from the environment. Leaves: a user called like the namespace, with a
new password whether or not it was there before, and the right to write to the namespace's experiments; on stdout the
Secret for its jobs and services, to be piped into `kubectl apply --server-side -f -`: without the option kubectl keeps
a second copy of the password, in an annotation. The operator gives the right to experiments of later jobs. Standard
library only, so that this runs beside any MLflow.
"""

import argparse
import base64
import json
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

_SERVER = "http://127.0.0.1:5000"


class Refused(Exception):
    """MLflow refused a request; `code` is its error_code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Server:
    """MLflow as its administrator sees it."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self._url = url.rstrip("/")
        self._authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request; what it answers.

        Raises:
            Refused: With MLflow's code and sentence.
        """
        request = urllib.request.Request(
            f"{self._url}/api/{path}",
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={"Authorization": self._authorization, "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                document: dict[str, Any] = json.loads(answer.read() or b"{}")
                return document
        except urllib.error.HTTPError as error:
            raise _refusal(error.code, error.read()) from None
        except urllib.error.URLError as error:
            raise Refused("UNREACHABLE", f"{self._url}: {error.reason}") from None

    def send_unless(self, code: str, method: str, path: str, body: dict[str, str]) -> bool:
        """One request, which may be refused with this code; whether it was not."""
        try:
            self.send(method, path, body)
        except Refused as error:
            if error.code != code:
                raise
            return False
        return True


def _refusal(status: int, body: bytes) -> Refused:
    try:
        document = json.loads(body)
        return Refused(document["error_code"], document.get("message", ""))
    except (ValueError, KeyError, TypeError):
        return Refused(str(status), body.decode(errors="replace")[:200])


def create_user(server: Server, user: str, password: str) -> None:
    """The user with this password; one that is there gets it as its new one."""
    credentials = {"username": user, "password": password}
    if not server.send_unless("RESOURCE_ALREADY_EXISTS", "POST", "2.0/mlflow/users/create", credentials):
        server.send("PATCH", "2.0/mlflow/users/update-password", credentials)


def experiments_of(server: Server, namespace: str) -> Iterator[str]:
    """The ids of a namespace's experiments, whose names begin with it and a dot, which no namespace has."""
    body: dict[str, Any] = {"filter": f"name LIKE '{namespace}.%'", "max_results": 1000}
    while True:
        page = server.send("POST", "2.0/mlflow/experiments/search", body)
        for found in page.get("experiments", ()):
            yield str(found["experiment_id"])
        if not page.get("next_page_token"):
            return
        body["page_token"] = page["next_page_token"]


def grant(server: Server, user: str, experiment_id: str) -> None:
    """Let the user read and write an experiment's runs and artifacts."""
    scope = {"username": user, "resource_type": "experiment", "resource_id": experiment_id}
    body = {**scope, "permission": "EDIT"}
    server.send_unless("RESOURCE_ALREADY_EXISTS", "POST", "3.0/mlflow/users/permissions/grant", body)


def secret(name: str, namespace: str, password: str) -> dict[str, Any]:
    """The Secret whose keys become variables of the namespace's pods."""
    # Not stringData, which does not work well with server-side apply.
    variables = {"MLFLOW_TRACKING_USERNAME": namespace, "MLFLOW_TRACKING_PASSWORD": password}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "plinth"}},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in variables.items()},
    }


def main() -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(description="Give a namespace its own user of MLflow; print its Secret.")
    parser.add_argument("namespace")
    parser.add_argument("--server", default=_SERVER, help="MLflow's address")
    arguments = parser.parse_args()
    user, password = os.environ["MLFLOW_AUTH_ADMIN_USERNAME"], os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]
    if arguments.namespace == user:
        sys.stderr.write(f"{user}: is the administrator, whose password cannot be a namespace's\n")
        return 2
    server = Server(arguments.server, user, password)
    generated = secrets.token_urlsafe(32)
    try:
        create_user(server, arguments.namespace, generated)
        # After the user: an experiment that the operator makes from now on, it gives the right to itself.
        for experiment_id in experiments_of(server, arguments.namespace):
            grant(server, arguments.namespace, experiment_id)
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        return 1
    name = os.environ.get("TRACKING_SECRET") or "plinth-mlflow"
    sys.stdout.write(json.dumps(secret(name, arguments.namespace, generated), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
