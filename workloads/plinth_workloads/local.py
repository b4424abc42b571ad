"""The local runner: the same resources, resolved the same way, on this machine's Ray and MLflow instead of a cluster's.

Everything lives in one folder (`.plinth`, or $PLINTH_HOME): `volumes/<claim>` stands for the claims of pvc:// URIs,
`runs/<job>` holds a job's document, progress, log and caches, `mlflow.db` and `artifacts` are MLflow's.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from plinth_api.model_service import ModelService
from plinth_api.parse import Job, Resource
from plinth_api.resolve import (
    ResolveSettings,
    referenced_aliases,
    resolve_serve_run,
    resolve_train_run,
    spec_hash,
)
from plinth_api.uris import holds_password
from plinth_workloads.errors import UserError
from plinth_workloads.train.progress import read_progress

RUN_DOCUMENT = "run.json"
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Home:
    """Where a laptop keeps what a cluster keeps in volumes and servers."""

    path: Path

    @property
    def tracking_uri(self) -> str:
        """MLflow's address: $MLFLOW_TRACKING_URI, else a database in this folder.

        Raises:
            UserError: InvalidSpec for an address with a password in it, which run records would keep.
        """
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.path}/mlflow.db"
        if holds_password(uri):
            raise UserError(
                "InvalidSpec",
                "MLFLOW_TRACKING_URI must not hold a password; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD",
            )
        return uri

    def settings(self, resource: Resource, *, again: bool = False) -> ResolveSettings:
        """What this place decides for a resource; its identity is kind, name and spec.

        Args:
            resource: What is to run.
            again: Take a new identity, in place of the newest one of the same spec.
        """
        identity = f"{resource.kind.lower()}-{resource.metadata.name}-{spec_hash(resource)}"
        number = sum(1 for _ in (self.path / "runs").glob(f"{identity}*")) + again
        uid = f"{identity}-{number}" if number > 1 else identity
        commit = _git_commit()
        return ResolveSettings(
            uid=uid,
            volume_root=str(self.path / "volumes"),
            checkpoint_root=str(self.path / "checkpoints"),
            work_dir=str(self.path / "runs" / uid),
            tracking_uri=self.tracking_uri,
            model_cache_dir=str(self.path / "models"),
            tags={"mlflow.source.git.commit": commit} if commit else {},
        )


@dataclass(slots=True)
class JobResult:
    """How a job ended, for the summary."""

    name: str
    kind: str
    outcome: Literal["succeeded", "failed", "stopped"]
    step: int = 0
    total_steps: int = 0
    seconds: float = 0.0
    already_done: bool = False
    reason: str = ""
    message: str = ""
    loss: float | None = None
    checkpoint: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    run_id: str = ""
    run_url: str = ""
    log: str = ""


Follow = Callable[[dict[str, Any]], None]


def pin_versions(resource: Resource, home: Home) -> dict[str, str]:
    """The versions that the resource's aliases name now.

    Raises:
        UserError: ModelNotFound for an alias that names nothing, TrackingUnavailable.
    """
    versions = {}
    for uri in referenced_aliases(resource, registry_prefix=""):
        from plinth_workloads.tracking import resolve_alias

        version = resolve_alias(home.tracking_uri, uri)
        if version is None:
            raise UserError(
                "ModelNotFound",
                f"{uri} names no registered model yet; run the job that makes it first, or correct spec.model.uri",
            )
        versions[uri] = version.uri
    return versions


def run_job(job: Job, home: Home, *, again: bool, follow: Follow) -> JobResult:
    """Train in processes of their own, showing progress; goes on where an earlier call was stopped or killed.

    Args:
        job: What to run.
        home: Where.
        again: Start over although the same spec has run; what that run made stays.
        follow: Called with each progress event.

    Raises:
        InvalidSpec: The job cannot be resolved.
        UserError: It is running already, or what it needs is not there.
    """
    settings = home.settings(job, again=again)
    folder = Path(settings.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_runner(folder, job.metadata.name):
        document = folder / RUN_DOCUMENT
        if not document.exists():
            # Aliases are pinned once: a run that goes on later starts from the same base.
            run = resolve_train_run(job, settings, pin_versions(job, home))
            _write_atomically(document, run.model_dump_json(by_alias=True, indent=2))
        before = _result_so_far(job, folder)
        if before.model:
            before.already_done = True
            return before
        started = time.monotonic()
        offset = _end_of_progress(folder)
        code = _train(document, folder, follow, offset)
        result = _result_so_far(job, folder, offset)
        result.seconds = time.monotonic() - started
        if code != 0 and result.outcome != "failed":
            result.outcome, result.reason = "failed", "ContainerCrashed"
            result.message = f"the training process ended with code {code}; its log is {result.log}"
        return result


def serve_document(service: ModelService, home: Home) -> Path:
    """Write the serving document of a service.

    Raises:
        InvalidSpec: The service cannot be resolved.
        UserError: ModelNotFound or TrackingUnavailable.
    """
    settings = home.settings(service)
    run = resolve_serve_run(service, settings, pin_versions(service, home)).mounted(settings.volume_root)
    path = Path(settings.work_dir) / "serve.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(path, run.model_dump_json(by_alias=True, indent=2))
    return path


def _train(document: Path, folder: Path, follow: Follow, offset: int) -> int:
    """Run the workload's own entry point; an interrupt lets it save and stop, a second one ends it."""
    with (folder / "train.log").open("ab") as log:
        process = start_workload(
            [sys.executable, "-m", "plinth_workloads.train", str(document)], stdout=log, stderr=log
        )
        interrupts = 0
        while True:
            try:
                ended = process.poll() is not None
                for event, behind in read_progress(folder, offset):
                    offset = behind
                    follow(event)
                if ended:
                    return process.returncode
                time.sleep(_POLL_SECONDS)
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1:
                    process.kill()
                else:
                    process.send_signal(signal.SIGTERM)
                    follow({"event": "stopping"})


def start_workload(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start an entry point that ends when this process does, however it ends; Ctrl-C in the terminal passes it by."""
    return subprocess.Popen(
        [*command, "--exit-with-parent"], stdin=subprocess.PIPE, start_new_session=True, env=_environment(), **options
    )


def _environment() -> Mapping[str, str]:
    quiet = {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        # What only a cluster needs, and each start would wait for: a watch for nodes that are taken away, dashboards.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return {**quiet, **os.environ}


@contextmanager
def _only_runner(folder: Path, name: str) -> Iterator[None]:
    """Hold the job's lock; the kernel frees it when this process dies."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                "InvalidSpec", f"{name} is running already in {folder}; wait for it, or stop it first"
            ) from error
        yield


def _end_of_progress(folder: Path) -> int:
    return max((behind for _, behind in read_progress(folder)), default=0)


def _result_so_far(job: Job, folder: Path, offset: int = 0) -> JobResult:
    """What the progress file tells of a job; its outcome is of the events from `offset` on."""
    result = JobResult(job.metadata.name, job.kind, "stopped", log=str(folder / "train.log"))
    for event, behind in read_progress(folder):
        match event["event"]:
            case "run":
                result.run_id, result.run_url = event["runId"], event["runUrl"]
            case "started":
                result.step, result.total_steps = event["step"], event["totalSteps"]
            case "step":
                result.step, result.loss = event["step"], event["loss"]
            case "checkpoint":
                result.checkpoint = event["uri"]
            case "model":
                result.model, result.outcome = event, "failed" if event["gate"] == "Failed" else "succeeded"
                if event["gate"] == "Failed":
                    failed = [finding for finding in event["findings"] if finding.startswith("failed")]
                    result.reason, result.message = "GateFailed", "; ".join(failed)
            case "failed" if behind > offset:
                result.outcome, result.reason, result.message = "failed", event["reason"], event["message"]
    return result


def _write_atomically(path: Path, content: str) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text(content)
    partial.rename(path)


def _git_commit() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def read_events(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects that an entry point prints, one a line; other lines are passed over."""
    for line in stream:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict):
            yield event
