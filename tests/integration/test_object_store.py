"""Checkpoints and data in a real S3: another machine goes on from them, and nothing half-sent ever counts."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from pyarrow.fs import S3FileSystem

from cluster.build import STORAGE, ensure_assets
from plinth_api.run import RunSource
from plinth_workloads.data.sources import load_source, source_files
from plinth_workloads.errors import UserError
from plinth_workloads.object_stores import BucketFiles
from plinth_workloads.train.object_store import ObjectStore
from servers import S3Server
from torch_runs import ENVIRONMENT, train
from training import make_train_run, open_alone, weights_of

pytestmark = pytest.mark.integration

BUCKET = "checkpoints"
UID = "tiny-uid"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp("s3"), ensure_assets(STORAGE).binary("versitygw"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch, request):
    """A URI of its own for each test."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setitem(ENVIRONMENT, name, value)
    S3FileSystem(endpoint_override=server.url, allow_bucket_creation=True).create_dir(BUCKET)
    return f"s3://{BUCKET}/{abs(hash(request.node.name))}"


def run_on(machine, uri, **spec):
    """The same job, with everything but its checkpoints on one machine."""
    return make_train_run(machine, **{"checkpoint": {"uri": uri, "everySteps": 2, "keep": 2}, **spec})


def names_in(server, uri):
    root = server.folder / uri.removeprefix("s3://") / UID
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def file_of(server, uri, name):
    return server.folder / uri.removeprefix("s3://") / UID / name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    session, losses = open_alone(make_train_run(tmp_path_factory.mktemp("undisturbed")))
    session.loop.train()
    return weights_of(session), losses.by_step


def trained_for(run, steps):
    """A session that has trained so many steps, with a checkpoint of every second one, and is lost."""
    session, _ = open_alone(run)
    session.loss.train()
    for step in range(session.loop.state.step + 1, steps + 1):
        session.loop.train_step()
        if step % 2 == 0:
            session.loop.save()
    return session


def assert_goes_on(run, undisturbed, *, after):
    weights, losses = undisturbed
    session, seen = open_alone(run)
    assert session.loop.state.step == after
    session.loop.train()
    assert seen.by_step == {step: loss for step, loss in losses.items() if step > after}
    assert [name for name, value in weights_of(session).items() if not torch.equal(value, weights[name])] == []


def test_another_machine_goes_on_as_if_nothing_had_happened(tmp_path, server, bucket, undisturbed):
    trained_for(run_on(tmp_path / "first", bucket), 7)
    shutil.rmtree(tmp_path / "first")
    assert {Path(name).parts[0] for name in names_in(server, bucket)} == {"step-00000004", "step-00000006"}
    assert_goes_on(run_on(tmp_path / "second", bucket), undisturbed, after=6)
    assert {Path(name).parts[0] for name in names_in(server, bucket)} == {"step-00000008", "step-00000010"}


def test_the_folder_keeps_the_newest_and_is_gone_on_from_without_a_transfer(tmp_path, server, bucket, undisturbed):
    session = trained_for(run_on(tmp_path, bucket), 6)
    assert session.loop.newest_checkpoint().uri == f"{bucket}/{UID}/step-00000006"
    assert [path.name for path in (tmp_path / "work" / "checkpoints").iterdir()] == ["step-00000006"]
    file_of(server, bucket, "step-00000006/state.json").write_text("not read")
    assert_goes_on(run_on(tmp_path, bucket), undisturbed, after=6)


def test_each_of_two_processes_sends_its_part_and_one_goes_on(tmp_path, server, bucket, undisturbed):
    run = run_on(tmp_path / "two", bucket, compute={"workers": 2, "parallelism": {"shard": 2}})
    _, losses = train(run, tmp_path / "two", processes=2)
    assert losses == pytest.approx(undisturbed[1], abs=1e-5)
    shards = [name for name in names_in(server, bucket) if name.startswith("step-00000008/shard-")]
    assert len(shards) == 2
    for name in names_in(server, bucket):
        if name.startswith("step-00000010/"):
            file_of(server, bucket, name).unlink()
    session, seen = open_alone(run_on(tmp_path / "one", bucket))
    assert session.loop.state.step == 8
    session.loop.train()
    assert seen.by_step == pytest.approx({step: undisturbed[1][step] for step in (9, 10)}, abs=1e-5)


@pytest.mark.parametrize("damage", ["cut", "missing", "not complete"])
def test_what_is_not_whole_is_passed_over_for_the_one_before(tmp_path, server, bucket, undisturbed, damage):
    trained_for(run_on(tmp_path / "first", bucket), 6)
    (shard,) = [name for name in names_in(server, bucket) if name.startswith("step-00000006/shard-")]
    broken = file_of(server, bucket, "step-00000006/state.json" if damage == "not complete" else shard)
    if damage == "cut":
        os.truncate(broken, broken.stat().st_size // 2)
    else:
        broken.unlink()
    assert_goes_on(run_on(tmp_path / "second", bucket), undisturbed, after=4)
    assert {Path(name).parts[0] for name in names_in(server, bucket)} == {"step-00000008", "step-00000010"}


def test_another_job_goes_on_from_it_and_leaves_it_as_it_is(tmp_path, server, bucket, undisturbed):
    trained_for(run_on(tmp_path / "first", bucket), 6)
    before = names_in(server, bucket)
    checkpoint = {"uri": f"{bucket}/other", "resumeFrom": bucket, "everySteps": 2}
    assert_goes_on(run_on(tmp_path / "second", bucket, checkpoint=checkpoint), undisturbed, after=6)
    assert [name for name in names_in(server, bucket) if name in before] == before


def test_what_a_run_had_after_its_checkpoint_is_removed_when_it_is_overtaken(tmp_path, server, bucket):
    uri = f"{bucket}/{UID}"
    store = ObjectStore(uri)
    for step in (2, 4, 6):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        for name in ("checksums.sha256", "state.json", "shard-00001.safetensors"):
            (folder / name).write_text(str(step))
        store.upload(folder, ["shard-00001.safetensors"])
        store.complete_upload(folder, step, keep=3)
    store.begin(tmp_path / "step-00000004")
    assert [found.step for found in store.complete()] == [6, 2]
    assert not any(name.startswith("step-00000004") for name in names_in(server, bucket))
    store.upload(tmp_path / "step-00000004", ["shard-00001.safetensors"])
    store.complete_upload(tmp_path / "step-00000004", 4, keep=3)
    assert [found.step for found in store.complete()] == [4, 2]
    assert [found.uri for found in store.complete()] == [f"{uri}/step-00000004", f"{uri}/step-00000002"]


def test_a_wrong_key_is_told_before_any_work(tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError) as caught:
        open_alone(run_on(tmp_path, bucket))
    assert caught.value.reason == "AccessDenied"
    assert caught.value.message.startswith(f"{bucket}/{UID} refuses access; check the credentials in ")
    assert "wrong" not in caught.value.message
    assert not (tmp_path / "work").exists()


def test_a_bucket_that_does_not_exist_is_told_before_any_work(tmp_path, bucket):
    with pytest.raises(UserError) as caught:
        open_alone(run_on(tmp_path, "s3://nobodys/checkpoints"))
    assert caught.value.reason == "CheckpointFailed"
    assert caught.value.message.startswith(f"s3://nobodys/checkpoints/{UID} cannot be reached: ")
    assert not (tmp_path / "work").exists()


def test_a_store_that_goes_away_fails_the_run_and_loses_nothing(tmp_path, server, bucket, undisturbed):
    session = trained_for(run_on(tmp_path, bucket), 5)
    server.stop()
    try:
        session.loop.train_step()
        with pytest.raises(UserError, match=rf"the checkpoint of step 6 cannot be saved in {bucket}") as caught:
            session.loop.save()
    finally:
        server.start()
    assert caught.value.reason == "CheckpointFailed"
    assert_goes_on(run_on(tmp_path, bucket), undisturbed, after=6)


def put(server, uri, content):
    path = server.folder / uri.removeprefix("s3://")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def source_at(uri):
    return RunSource(uri=uri, weight=1.0, format=None, split=None)


@pytest.mark.parametrize("pattern", ["", "/part-*.jsonl", "/part-1.jsonl"])
def test_data_are_read_from_a_bucket(tmp_path, server, bucket, pattern):
    for number in (1, 2):
        put(server, f"{bucket}/part-{number}.jsonl", json.dumps({"text": f"text {number}"}) + "\n")
    rows = load_source(source_at(bucket + pattern), tmp_path)
    assert rows["text"][:] == (["text 1"] if pattern.endswith("-1.jsonl") else ["text 1", "text 2"])


def test_a_bad_line_in_a_bucket_is_named(tmp_path, server, bucket):
    put(server, f"{bucket}/part.jsonl", '{"text": "good"}\n{bad}\n')
    with pytest.raises(UserError, match=rf"{bucket}/part.jsonl line 2 is not JSON") as caught:
        load_source(source_at(bucket), tmp_path)
    assert caught.value.reason == "InvalidData"


def test_data_that_are_not_there_or_not_ours_are_told(server, bucket, monkeypatch):
    with pytest.raises(UserError, match=rf"{bucket}/nowhere.jsonl matches no file") as caught:
        source_files(f"{bucket}/nowhere.jsonl")
    assert caught.value.reason == "DatasetNotFound"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    BucketFiles.clear_instance_cache()
    with pytest.raises(UserError, match=rf"{bucket} refuses access; check the credentials in the source's") as caught:
        source_files(bucket)
    assert caught.value.reason == "AccessDenied"
    BucketFiles.clear_instance_cache()
