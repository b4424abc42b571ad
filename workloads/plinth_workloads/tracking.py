"""Runs in MLflow, metrics that never block a step, and the model registry.

Only this module and `tracking_errors.py` know MLflow, and import it when it is first needed, so that the training loop
imports where MLflow is not installed.
"""

import contextlib
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from plinth_api.run import RunTracking
from plinth_api.run_tags import UID
from plinth_api.uris import registry_parts
from plinth_workloads.errors import UserError
from plinth_workloads.tracking_errors import is_not_ones_own, reaching

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

T = TypeVar("T")

ARTIFACTS = "artifacts"
"""Folder of artifacts beside a local database."""

_FLUSH_SECONDS = 2.0
_MAX_METRICS_PER_REQUEST = 900
"""MLflow takes 1000 entries a request, of which 100 may be tags."""
_MAX_PARAM_LENGTH = 6000
_SYSTEM_METRICS_SECONDS = 10.0
_RETRY_SECONDS = (0.5, 1, 2, 4, 8, 15, 30, 30)
"""Waits between tries of a write that must not be lost: about a minute and a half in all."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered version."""

    name: str
    version: str

    @property
    def uri(self) -> str:
        """models:/name/version."""
        return f"models:/{self.name}/{self.version}"


def open_client(uri: str) -> "MlflowClient":
    """A client of the MLflow at `uri` that gives up on a dead server within seconds, not minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def resolve_alias(tracking_uri: str, uri: str) -> ModelVersion | None:
    """The version that models:/name@alias names now, None where there is no such model or alias.

    Raises:
        UserError: TrackingUnavailable or TrackingDenied.
    """
    name, _, alias = registry_parts(uri)
    assert alias is not None
    with reaching(tracking_uri):
        from mlflow.exceptions import MlflowException

        try:
            found = open_client(tracking_uri).get_model_version_by_alias(name, alias)
        except MlflowException as error:
            # An unknown alias is INVALID_PARAMETER_VALUE, an unknown model RESOURCE_DOES_NOT_EXIST. Somebody else's
            # alias is as good as none: it cannot be moved either.
            unknown = error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
            if unknown or is_not_ones_own(error):
                return None
            raise
    return ModelVersion(found.name, str(found.version))


class Tracker:
    """One MLflow run. Metrics and tags are queued and sent by a thread; all else is sent at once, with retries."""

    def __init__(
        self,
        tracking: RunTracking,
        *,
        retry_seconds: Sequence[float] = _RETRY_SECONDS,
        client: "MlflowClient | None" = None,
    ) -> None:
        """Open the run: the given one, else the one with this uid, else a new one.

        Args:
            tracking: Where the run is, or is to be.
            retry_seconds: Waits between tries of a write that must not be lost.
            client: Of the MLflow at `tracking.uri`, where the caller has one.

        Raises:
            UserError: TrackingUnavailable or TrackingDenied.
        """
        self._uri = tracking.uri
        self._secret = tracking.secret
        self._retry_seconds = retry_seconds
        with reaching(tracking.uri, secret=tracking.secret):
            self._client = client or open_client(tracking.uri)
            run = _open_run(self._client, tracking)
        self.experiment_id: str = run.info.experiment_id
        self.run_id: str = run.info.run_id
        self._pending: deque[Metric] = deque()
        self._tags: dict[str, str] = {}
        self._known_tags: dict[str, str] = dict(run.data.tags)
        self._wake = threading.Event()
        self._closing = False
        self._system = _SystemMetrics()
        self._thread = threading.Thread(target=self._send_forever, name="mlflow-metrics", daemon=True)
        self._thread.start()

    @property
    def run_url(self) -> str:
        """The run's page, where MLflow is a server; else the path of the page in `mlflow ui`."""
        page = f"#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return f"{self._uri.rstrip('/')}/{page}" if self._uri.startswith("http") else page

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue metrics of a step; returns at once."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending.extend(Metric(key, float(value), now, step) for key, value in metrics.items())

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Queue tags of the run; returns at once. Only what differs from the run's is sent, with the metrics."""
        self._tags |= tags

    def remove_tags(self, names: Sequence[str]) -> None:
        """Remove the tags that an earlier attempt has left."""
        for name in names:
            if name in self._known_tags:
                self._keep_trying(lambda name=name: self._client.delete_tag(self.run_id, name))  # type: ignore[misc]
                del self._known_tags[name]

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters that the run does not have yet: a resumed run keeps its first ones."""
        from mlflow.entities import Param

        known = self._keep_trying(lambda: self._client.get_run(self.run_id)).data.params
        new = [Param(key, str(value)[:_MAX_PARAM_LENGTH]) for key, value in params.items() if key not in known]
        for start in range(0, len(new), 100):
            batch = new[start : start + 100]
            self._keep_trying(lambda batch=batch: self._client.log_batch(self.run_id, params=batch))  # type: ignore[misc]

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log one file."""
        self._keep_trying(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def log_folder(self, path: Path, folder: str) -> None:
        """Log all files of a folder."""
        self._keep_trying(lambda: self._client.log_artifacts(self.run_id, str(path), folder))

    def register(self, name: str, artifact_path: str, tags: Mapping[str, str]) -> ModelVersion:
        """Register the run's artifact as a version of a model; a second call finds the version of the first."""
        from mlflow.exceptions import MlflowException

        def register() -> ModelVersion:
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.search_model_versions(f"name = '{name}' and run_id = '{self.run_id}'")
            version = (
                found[0]
                if found
                else self._client.create_model_version(
                    name, source=f"runs:/{self.run_id}/{artifact_path}", run_id=self.run_id, tags=dict(tags)
                )
            )
            return ModelVersion(name, str(version.version))

        return self._keep_trying(register)

    def set_version_tags(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Set tags of a model version."""
        for key, value in tags.items():
            self._keep_trying(
                lambda key=key, value=value: self._client.set_model_version_tag(  # type: ignore[misc]
                    version.name, version.version, key, value
                )
            )

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        """Let the alias name this version."""
        self._keep_trying(lambda: self._client.set_registered_model_alias(version.name, alias, version.version))

    def close(self, status: str) -> None:
        """Send what is queued and end the run.

        Args:
            status: FINISHED, FAILED or KILLED; RUNNING leaves it open for a later attempt.

        Raises:
            UserError: TrackingUnavailable, where points are still unsent after all retries; TrackingDenied or
                TrackingCredentialsChanged, where MLflow does not take them.
        """
        self._closing = True
        self._wake.set()
        self._thread.join()
        self._keep_trying(self._send_pending)
        if status == "RUNNING":
            return
        self._keep_trying(lambda: self._client.set_terminated(self.run_id, status))

    def _send_forever(self) -> None:
        failures = 0
        next_sample = time.monotonic() + _SYSTEM_METRICS_SECONDS
        while not self._closing:
            self._wake.wait(
                _FLUSH_SECONDS if not failures else self._retry_seconds[min(failures, len(self._retry_seconds)) - 1]
            )
            if time.monotonic() >= next_sample:
                next_sample = time.monotonic() + _SYSTEM_METRICS_SECONDS
                self._sample_system()
            try:
                self._send_pending()
                failures = 0
            except Exception as error:  # the training goes on whatever MLflow does
                if not failures:
                    logger.warning("MLflow does not take metrics: %s; they are kept and sent later", error)
                failures += 1

    def _sample_system(self) -> None:
        self.log_metrics(self._system.sample_number, self._system.sample())

    def _send_pending(self) -> None:
        while self._pending or self._changed_tags():
            batch = [self._pending[index] for index in range(min(len(self._pending), _MAX_METRICS_PER_REQUEST))]
            # Read after the metrics: a tag may be newer than they are, never older.
            tags = self._changed_tags()
            self._client.log_batch(self.run_id, metrics=batch, tags=_run_tags(tags))
            self._known_tags |= tags
            for _ in batch:
                self._pending.popleft()

    def _changed_tags(self) -> dict[str, str]:
        # A copy: the training's thread may add to them meanwhile.
        tags = dict(self._tags)
        return {key: value for key, value in tags.items() if self._known_tags.get(key) != value}

    def _keep_trying(self, write: Callable[[], T]) -> T:
        """What the write gives, at the latest when an outage has been waited for; a refusal is not waited for."""
        for wait in self._retry_seconds:
            try:
                return self._once(write)
            except UserError as error:
                if error.reason != "TrackingUnavailable":
                    raise
                logger.warning("%s; trying again in %s s", error, wait)
                time.sleep(wait)
        return self._once(write)

    def _once(self, write: Callable[[], T]) -> T:
        with reaching(self._uri, secret=self._secret, was_let_in=True):
            return write()


def _run_tags(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in tags.items()]


def _open_run(client: "MlflowClient", tracking: RunTracking) -> "Run":
    """The run, running: also where an earlier attempt has ended it."""
    if tracking.run_id is not None:
        return _running(client, client.get_run(tracking.run_id))
    experiment_id = _open_experiment(client, tracking)
    found = client.search_runs([experiment_id], f"tags.`{UID}` = '{tracking.tags[UID]}'", max_results=1)
    if found:
        return _running(client, found[0])
    return client.create_run(experiment_id, tags=dict(tracking.tags), run_name=tracking.run_name)


def _running(client: "MlflowClient", run: "Run") -> "Run":
    if run.info.status != "RUNNING":
        client.set_terminated(run.info.run_id, "RUNNING")
    return run


def _open_experiment(client: "MlflowClient", tracking: RunTracking) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(tracking.experiment)
    try:
        return experiment.experiment_id if experiment else _create_experiment(client, tracking)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(client.get_experiment_by_name(tracking.experiment).experiment_id)


def _create_experiment(client: "MlflowClient", tracking: RunTracking) -> str:
    """A new experiment; beside a local database its artifacts lie too, not in whatever folder a worker runs in."""
    database = tracking.uri.removeprefix("sqlite:///")
    location = str(Path(database).parent / ARTIFACTS) if database != tracking.uri else None
    created: str = client.create_experiment(tracking.experiment, artifact_location=location)
    return created


class _SystemMetrics:
    """MLflow's own collectors of the machine's load, sampled into our queue so that an outage loses nothing."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(ImportError, RuntimeError):  # no NVIDIA library on this machine
            from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

            self._monitors.append(GPUMonitor())
        self.sample_number = 0

    def sample(self) -> dict[str, float]:
        self.sample_number += 1
        sampled: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            sampled |= {f"system/{key}": value for key, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return {key: value for key, value in sampled.items() if math.isfinite(value)}
