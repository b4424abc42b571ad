from typing import Any

import pytest

from makers import make_model_service, make_pretrain_job
from plinth_api.resolve import resolve_train_run
from plinth_api.run import TrainRun
from plinth_operator.plan.run_config import build_run_config, resolve_settings_for
from plinth_operator.settings import InvalidSettings, Settings, read_settings

UID = "abcde123-0000-4000-8000-000000000000"
SETTINGS = Settings(storage_claim="store", cluster_name="west", tracking_uri="http://mlflow")
PLACE = {"namespace": "team-a", "uid": UID}


@pytest.mark.parametrize(
    ("uri", "work_dir", "checkpoints"),
    [
        (None, f"/mnt/plinth/volumes/store/checkpoints/.work/{UID}", f"/mnt/plinth/volumes/store/checkpoints/{UID}"),
        ("pvc://c/a/b", f"/mnt/plinth/volumes/c/a/b/.work/{UID}", f"/mnt/plinth/volumes/c/a/b/{UID}"),
        ("pvc://c", f"/mnt/plinth/volumes/c/.work/{UID}", f"/mnt/plinth/volumes/c/{UID}"),
        ("file:///nfs/x/", f"/nfs/x/.work/{UID}", f"/nfs/x/{UID}"),
    ],
)
def test_the_work_folder_is_beside_the_checkpoints(uri: str | None, work_dir: str, checkpoints: str):
    job = make_pretrain_job(**PLACE, checkpoint={"uri": uri})
    run = resolve_train_run(job, resolve_settings_for(job, SETTINGS, "run-1"), {})
    assert run.work_dir == work_dir
    assert run.checkpoint.uri == f"file://{checkpoints}"


def test_with_checkpoints_in_a_bucket_the_work_folder_is_on_the_platforms_claim():
    job = make_pretrain_job(**PLACE, checkpoint={"uri": "s3://bucket/x", "resumeFrom": "gs://other/y"})
    run = resolve_train_run(job, resolve_settings_for(job, SETTINGS, "run-1"), {})
    assert run.work_dir == f"/mnt/plinth/volumes/store/checkpoints/.work/{UID}"
    assert (run.checkpoint.uri, run.checkpoint.resume_from) == (f"s3://bucket/x/{UID}", "gs://other/y")


def test_the_run_carries_where_it_comes_from():
    job = make_pretrain_job(**PLACE)
    run = resolve_train_run(job, resolve_settings_for(job, SETTINGS, "run-1"), {})
    assert run.tracking.run_id == "run-1"
    assert run.tracking.uri == "http://mlflow"
    assert run.output.model == "team-a.tiny"
    assert run.tracking.experiment == "team-a.tiny"
    assert run.tracking.tags == {
        "plinth.uid": UID,
        "plinth.cluster": "west",
        "plinth.kind": "PretrainJob",
        "plinth.namespace": "team-a",
        "plinth.name": "tiny",
    }


@pytest.mark.parametrize(
    ("setting", "tracking", "secret"),
    [("", {}, None), ("plinth-mlflow", {}, "plinth-mlflow"), ("plinth-mlflow", {"secretRef": {"name": "own"}}, "own")],
)
def test_the_run_names_the_secret_that_its_credentials_come_from(setting: str, tracking: Any, secret: str | None):
    settings = SETTINGS.model_copy(update={"tracking_secret": setting})
    job = make_pretrain_job(**PLACE, tracking=tracking)
    assert resolve_train_run(job, resolve_settings_for(job, settings), {}).tracking.secret == secret


def test_a_service_works_in_a_folder_of_its_pod():
    assert resolve_settings_for(make_model_service(**PLACE), SETTINGS).work_dir == "/mnt/plinth/work"


def test_what_a_model_cache_may_hold_is_a_setting():
    settings = SETTINGS.model_copy(update={"model_cache_size": "500Gi"})
    assert resolve_settings_for(make_model_service(**PLACE), settings).model_cache_bytes == 500 * 2**30
    assert resolve_settings_for(make_model_service(**PLACE), SETTINGS).model_cache_bytes is None


@pytest.mark.parametrize("size", ["much", "-1Gi"])
def test_a_size_that_is_none_is_refused_with_its_variable(size: str):
    with pytest.raises(InvalidSettings, match="PLINTH_MODEL_CACHE_SIZE"):
        read_settings({"PLINTH_MODEL_CACHE_SIZE": size})


def test_the_config_map_of_an_attempt_is_immutable_and_reads_back():
    job = make_pretrain_job(**PLACE)
    run = resolve_train_run(job, resolve_settings_for(job, SETTINGS), {})
    config = build_run_config(run, job, 2)
    assert config["metadata"]["name"] == "tiny-abcde-2"
    assert config["immutable"] is True
    assert TrainRun.model_validate_json(config["data"]["run.json"]) == run
