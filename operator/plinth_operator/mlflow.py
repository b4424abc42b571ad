"""The only module that talks to MLflow: the few REST calls that the operator makes."""

import json
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import aiohttp

from plinth_api.uris import registry_parts
from plinth_operator.constants import CLUSTER_TAG
from plinth_operator.facts import RunFacts

_REQUEST_SECONDS = 10.0
_PAGE = 100
_API = "api/2.0/mlflow"
_GRANT = "api/3.0/mlflow/users/permissions/grant"
_MAX_WORDS = 120
"""Of an answer that is no JSON, in a message."""

_UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow answers for an alias of no model, and for no alias of a model."""


class MlflowError(Exception):
    """MLflow refused; `code` is its error_code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class MlflowUnavailable(Exception):
    """MLflow did not answer, or not with sense."""


class MlflowDenied(Exception):
    """MLflow answered 401 or 403: it knows the operator's credentials not, or not as an administrator's."""


class Mlflow:
    """A client of one MLflow server; an async context manager.

    Credentials are those of MLflow's own client: MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN.
    """

    def __init__(self, uri: str, cluster: str, *, has_users: bool = False) -> None:
        """Take the server's address and the name of this cluster, which tags its runs.

        Args:
            uri: Of the server.
            cluster: Name of this cluster.
            has_users: Whether the server has a user for each namespace, who may write to its experiments.
        """
        self._uri = uri.rstrip("/")
        self._cluster = cluster
        self._has_users = has_users
        self._session: aiohttp.ClientSession | None = None
        self._experiments: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if user and not token:
            password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
            headers["Authorization"] = aiohttp.encode_basic_auth(user, password)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS),
            # Shorter than any server's: a POST on a connection that is being closed counts as no answer.
            connector=aiohttp.TCPConnector(limit=8, keepalive_timeout=1.0),
            headers=headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def create_run(self, experiment: str, name: str, tags: Mapping[str, str], namespace: str) -> RunFacts:
        """A new run, in an experiment of a namespace that is made where it is missing."""
        experiment_id = await self._experiment(experiment, namespace)
        body = {
            "experiment_id": experiment_id,
            "run_name": name,
            "start_time": int(time.time() * 1000),
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        try:
            created = await self._post("runs/create", body)
        except MlflowError:
            # The experiment that we remember may have been deleted meanwhile.
            self._experiments.pop(experiment, None)
            raise
        return _run_facts(created["run"])

    async def search_runs(self, condition: str) -> AsyncIterator[RunFacts]:
        """The runs that meet an MLflow filter, over all experiments."""
        experiments = [found async for found in self._experiment_ids()]
        body: dict[str, Any] = {"experiment_ids": experiments, "filter": condition, "max_results": _PAGE}
        while experiments:
            page = await self._post("runs/search", body)
            for run in page.get("runs", ()):
                yield _run_facts(run)
            if not page.get("next_page_token"):
                return
            body["page_token"] = page["next_page_token"]

    async def read_runs(self, experiment_ids: Sequence[str], run_ids: Sequence[str]) -> list[RunFacts]:
        """What is known of at most 100 runs, in one request."""
        assert len(run_ids) <= _PAGE
        listed = ",".join(f"'{run_id}'" for run_id in run_ids)
        body = {
            "experiment_ids": list(experiment_ids),
            "filter": f"attributes.run_id IN ({listed})",
            "max_results": _PAGE,
        }
        found = await self._post("runs/search", body)
        return [_run_facts(run) for run in found.get("runs", ())]

    async def running_runs(self) -> AsyncIterator[RunFacts]:
        """The runs of this cluster that are RUNNING, those of jobs deleted meanwhile included."""
        condition = f"attributes.status = 'RUNNING' and tags.`{CLUSTER_TAG}` = '{self._cluster}'"
        async for run in self.search_runs(condition):
            yield run

    async def end_run(self, run_id: str, status: str) -> None:
        """Set a run FINISHED, FAILED or KILLED; a run that somebody deleted is left alone."""
        body = {"run_id": run_id, "status": status, "end_time": int(time.time() * 1000)}
        try:
            await self._post("runs/update", body)
        except MlflowError as error:
            if error.code not in _UNKNOWN:
                raise

    async def resolve_alias(self, uri: str) -> str:
        """models:/name@alias with the version it names; empty where there is no such model or alias."""
        name, _, alias = registry_parts(uri)
        assert alias is not None
        try:
            found = await self._request("GET", "registered-models/alias", {"name": name, "alias": alias})
        except MlflowError as error:
            if error.code in _UNKNOWN:
                return ""
            raise
        return f"models:/{name}/{found['model_version']['version']}"

    async def _experiment(self, name: str, namespace: str) -> str:
        if name not in self._experiments:
            try:
                created = await self._post("experiments/create", {"name": name})
                experiment_id = created["experiment_id"]
            except MlflowError as error:
                if error.code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = await self._request("GET", "experiments/get-by-name", {"experiment_name": name})
                experiment_id = found["experiment"]["experiment_id"]
            if self._has_users:
                # Before it is remembered: an operator that was killed in between has to do it again.
                await self._let_write(namespace, experiment_id)
            self._experiments[name] = experiment_id
        return self._experiments[name]

    async def _let_write(self, user: str, experiment_id: str) -> None:
        """Let a user write to an experiment; one who is made later gets the right then, by add_namespace.py."""
        scope = {"username": user, "resource_type": "experiment", "resource_id": experiment_id}
        try:
            await self._send("POST", _GRANT, body={**scope, "permission": "EDIT"})
        except MlflowError as error:
            if error.code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise

    async def _experiment_ids(self) -> AsyncIterator[str]:
        body: dict[str, Any] = {"max_results": 1000, "view_type": "ACTIVE_ONLY"}
        while True:
            page = await self._post("experiments/search", body)
            for experiment in page.get("experiments", ()):
                yield experiment["experiment_id"]
            if not page.get("next_page_token"):
                return
            body["page_token"] = page["next_page_token"]

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._request("POST", path, body=body)

    async def _request(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
    ) -> dict[str, Any]:
        return await self._send(method, f"{_API}/{path}", query, body)

    async def _send(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
    ) -> dict[str, Any]:
        assert self._session is not None
        try:
            async with self._session.request(method, f"{self._uri}/{path}", params=query, json=body) as answer:
                status, text = answer.status, await answer.text()
        except (TimeoutError, aiohttp.ClientError, OSError, UnicodeDecodeError) as error:
            raise MlflowUnavailable(f"{type(error).__name__}: {error}") from error
        if status in (401, 403):
            raise MlflowDenied(f"{status}: {' '.join(text.split())[:_MAX_WORDS]}")
        try:
            document = json.loads(text)
        except ValueError as error:
            raise MlflowUnavailable(f"status {status} without JSON") from error
        if status >= 500 or status == 429 or not isinstance(document, dict):
            raise MlflowUnavailable(f"status {status}")
        if status >= 400:
            raise MlflowError(document.get("error_code", str(status)), document.get("message", ""))
        return document


def _run_facts(run: Mapping[str, Any]) -> RunFacts:
    info, data = run["info"], run.get("data", {})
    metrics = {metric["key"]: metric for metric in data.get("metrics", ())}
    newest, saved = metrics.get("train/loss"), metrics.get("train/checkpoint_step")
    return RunFacts(
        run_id=info["run_id"],
        experiment_id=info["experiment_id"],
        status=info["status"],
        step=int(newest["step"]) if newest and "step" in newest else None,
        step_at=_time_of(newest),
        saved_step=int(saved["step"]) if saved and "step" in saved else None,
        saved_at=_time_of(saved),
        # MLflow writes NaN as a string.
        metrics={key: float(metric["value"]) for key, metric in metrics.items() if not key.startswith("system/")},
        tags={tag["key"]: tag["value"] for tag in data.get("tags", ()) if tag["key"].startswith("plinth.")},
    )


def _time_of(metric: Mapping[str, Any] | None) -> datetime | None:
    """When a metric was logged, to the second; None for a time that no calendar has, as anybody can log."""
    if metric is None or "timestamp" not in metric:
        return None
    try:
        return datetime.fromtimestamp(int(metric["timestamp"]) // 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
