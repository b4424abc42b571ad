"""Tracking against a real MLflow server that goes away and comes back."""

import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient

from plinth_api.run import RunTracking
from plinth_workloads.errors import UserError
from plinth_workloads.models.fetch import fetch_model
from plinth_workloads.tracking import Tracker, resolve_alias
from plinth_workloads.tracking_files import download, remote_files
from plinth_workloads.train.session import run_training
from servers import MlflowServer, free_port
from training import make_train_run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


def tracking(uri, uid, **changes):
    fields = {"experiment": "tests", "run_name": uid, "run_id": None, "tags": {"plinth.uid": uid}}
    return RunTracking(uri=uri, **{**fields, **changes})


def history(server, run_id, key):
    return {point.step: point.value for point in MlflowClient(server.uri, server.uri).get_metric_history(run_id, key)}


def test_a_second_attempt_goes_on_in_the_same_run(server):
    first = Tracker(tracking(server.uri, "attempts"))
    first.log_params({"lr": 0.1, "note": "x" * 10_000})
    first.log_metrics(1, {"train/loss": 3.0})
    first.close("FAILED")
    second = Tracker(tracking(server.uri, "attempts"))
    assert second.run_id == first.run_id
    second.log_params({"lr": 0.2, "new": 1})
    second.log_metrics(2, {"train/loss": float("nan")})
    second.close("FINISHED")
    run = MlflowClient(server.uri, server.uri).get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "0.1"
    assert run.data.params["new"] == "1"
    assert set(history(server, first.run_id, "train/loss")) == {1, 2}


def test_a_given_run_is_used(server):
    first = Tracker(tracking(server.uri, "given"))
    first.close("RUNNING")
    again = Tracker(tracking(server.uri, "other-uid", run_id=first.run_id))
    assert again.run_id == first.run_id
    again.close("RUNNING")
    assert MlflowClient(server.uri, server.uri).get_run(first.run_id).info.status == "RUNNING"


def test_an_outage_stops_nothing_and_loses_no_point(server):
    tracker = Tracker(tracking(server.uri, "outage"), retry_seconds=(0.5,) * 60)
    tracker.log_metrics(0, {"train/loss": 9.0})
    server.stop()
    started = time.monotonic()
    for step in range(1, 2501):
        tracker.log_metrics(step, {"train/loss": 1 / step})
    assert time.monotonic() - started < 2, "logging waits for MLflow"
    time.sleep(3)  # some tries fail
    server.start()
    tracker.close("FINISHED")
    points = history(server, tracker.run_id, "train/loss")
    assert points == pytest.approx({0: 9.0} | {step: 1 / step for step in range(1, 2501)})
    assert MlflowClient(server.uri, server.uri).get_run(tracker.run_id).info.status == "FINISHED"


def test_the_machines_load_is_recorded(server, monkeypatch):
    monkeypatch.setattr("plinth_workloads.tracking._SYSTEM_METRICS_SECONDS", 0.5)
    tracker = Tracker(tracking(server.uri, "system"))
    time.sleep(4)
    tracker.close("FINISHED")
    assert (
        MlflowClient(server.uri, server.uri)
        .get_run(tracker.run_id)
        .data.metrics["system/system_memory_usage_megabytes"]
        > 0
    )


def test_a_version_is_registered_once_and_found_by_its_alias(server, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    tracker = Tracker(tracking(server.uri, "registry"))
    tracker.log_folder(tmp_path / "model", "model")
    version = tracker.register("tiny", "model", {"plinth.uid": "registry"})
    assert tracker.register("tiny", "model", {}) == version
    assert resolve_alias(server.uri, "models:/tiny@champion") is None
    tracker.set_alias(version, "champion")
    assert resolve_alias(server.uri, "models:/tiny@champion") == version
    assert resolve_alias(server.uri, "models:/nobody@champion") is None
    tracker.close("FINISHED")
    assert (
        MlflowClient(server.uri, server.uri).get_model_version("tiny", version.version).tags["plinth.uid"] == "registry"
    )
    assert (download(server.uri, version.uri, tmp_path / "copy") / "config.json").read_text() == "{}"


def test_where_the_files_of_a_version_are_and_how_large_is_told_before_they_are_downloaded(server, tmp_path):
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "deep" / "vocab.txt").write_text("w" * 1000)
    tracker = Tracker(tracking(server.uri, "files"))
    tracker.log_folder(tmp_path / "model", "model")
    version = tracker.register("first", "model", {})
    tracker.close("FINISHED")
    MlflowClient(server.uri, server.uri).copy_model_version(version.uri, "renamed")
    told = remote_files(server.uri, version.uri)
    assert told.sizes == {"config.json": 2, "deep/vocab.txt": 1000}
    assert remote_files(server.uri, "models:/renamed/1") == told
    assert remote_files(server.uri, f"runs:/{tracker.run_id}/model").sizes == told.sizes
    first, renamed = (
        fetch_model(uri, tracking_uri=server.uri, cache_dir=tmp_path / "cache")
        for uri in (version.uri, "models:/renamed/1")
    )
    assert first == renamed
    assert (first / "deep" / "vocab.txt").read_text() == "w" * 1000


GATED = {
    "evaluation": {"gate": [{"metric": "perplexity", "max": 1.001}]},
    "output": {"model": "gated", "alias": "champion"},
}


def test_a_run_tells_how_it_stands(server, tmp_path):
    """What the operator reads: one answer of runs/search, after each of three attempts."""
    missing = {"data": {"train": [{"uri": f"file://{tmp_path}/missing.jsonl"}]}}
    with pytest.raises(UserError):
        run_training(make_train_run(tmp_path, tracking_uri=server.uri, **GATED, **missing))
    failed = standing(server)
    assert (failed["status"], failed["plinth.phase"]) == ("FAILED", "failed")
    assert failed["plinth.failureReason"] == "DatasetNotFound"
    assert f"file://{tmp_path}/missing.jsonl matches no file" in failed["plinth.failureMessage"]

    run = make_train_run(tmp_path, tracking_uri=server.uri, **GATED)
    stop_file = Path(run.work_dir) / "stop"
    stop_file.touch()
    assert run_training(run) == "stopped"
    stop_file.unlink()
    stopped = standing(server)
    assert (stopped["status"], stopped["plinth.phase"]) == ("RUNNING", "stopped")
    assert (stopped["plinth.startStep"], stopped["plinth.totalSteps"], stopped["plinth.checkpointStep"]) == (
        "0",
        "10",
        "1",
    )
    assert stopped["plinth.checkpointUri"] == f"{run.checkpoint.uri}/step-00000001"
    assert not {"plinth.failureReason", "plinth.failureMessage"} & set(stopped)

    resumed = datetime.now(UTC).replace(microsecond=0)
    assert run_training(run) == "finished"
    finished = standing(server)
    assert resumed <= datetime.fromisoformat(finished["plinth.trainingSince"]) <= datetime.now(UTC)
    assert finished["train/checkpoint_step"] == (10, 10.0)
    assert (finished["status"], finished["plinth.phase"]) == ("FINISHED", "finished")
    assert (finished["plinth.startStep"], finished["plinth.checkpointStep"]) == ("1", "10")
    assert (finished["plinth.modelName"], finished["plinth.modelVersion"]) == ("gated", "1")
    assert finished["plinth.gate"] == "Failed"
    assert float(finished["plinth.metric.perplexity"]) > 1.001
    assert resolve_alias(server.uri, "models:/gated@champion") is None
    for name in ("loss", "lr", "grad_norm", "tokens", "tokens_per_sec"):
        step, value = finished[f"train/{name}"]
        assert step == 10
        assert value > 0


def standing(server):
    """Status, tags and latest metrics with their step of the only run of experiment `gated`, over HTTP."""
    api = f"{server.uri}/api/2.0/mlflow"
    found = httpx.get(f"{api}/experiments/get-by-name", params={"experiment_name": "gated"}).json()
    experiments = [found["experiment"]["experiment_id"]]
    (run,) = httpx.post(f"{api}/runs/search", json={"experiment_ids": experiments, "max_results": 5}).json()["runs"]
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    metrics = {metric["key"]: (metric["step"], metric["value"]) for metric in run["data"].get("metrics", ())}
    return {"status": run["info"]["status"], **tags, **metrics}


def test_a_version_that_does_not_exist_is_a_sentence(server, tmp_path):
    with pytest.raises(UserError, match=r"models:/tiny/99 is not in the registry") as error:
        download(server.uri, "models:/tiny/99", tmp_path)
    assert error.value.reason == "ModelNotFound"
    with pytest.raises(UserError, match=r"models:/tiny/99 is not in the registry"):
        remote_files(server.uri, "models:/tiny/99")


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda uri, folder: Tracker(tracking(uri, "nobody")), id="opening a run"),
        pytest.param(lambda uri, folder: resolve_alias(uri, "models:/m@champion"), id="resolving an alias"),
        pytest.param(lambda uri, folder: download(uri, "models:/m/1", folder), id="downloading"),
    ],
)
def test_an_unreachable_server_is_a_sentence_within_seconds(tmp_path, call):
    uri = f"http://127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"MLflow at {uri} cannot be reached .* correct MLFLOW_TRACKING_URI") as error:
        call(uri, tmp_path)
    assert error.value.reason == "TrackingUnavailable"
    assert time.monotonic() - started < 30
