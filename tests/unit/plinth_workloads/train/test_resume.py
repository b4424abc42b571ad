"""Which checkpoint a run goes on from."""

import logging
from pathlib import Path

import pytest

from plinth_workloads.errors import UserError
from plinth_workloads.train.checkpoint import complete_checkpoints
from plinth_workloads.train.progress import ProgressLog, read_progress
from plinth_workloads.train.session import open_session
from training import ALONE, make_train_run, open_alone

SHARD = "shard-00001.safetensors"


def folder_of(run):
    return Path(run.checkpoint.uri.removeprefix("file://"))


def trained(folder, *steps, **spec):
    """A run with checkpoints of these steps."""
    run = make_train_run(folder, **spec)
    session, _ = open_alone(run)
    for step in range(1, max(steps) + 1):
        session.loop.train_step()
        if step in steps:
            session.loop.save()
    return run


def damage(checkpoint):
    shard = checkpoint.folder / SHARD
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_taken(tmp_path, caplog):
    run = trained(tmp_path, 2, 4)
    damage(complete_checkpoints(folder_of(run))[0])
    log = ProgressLog(Path(run.work_dir))
    with caplog.at_level(logging.WARNING):
        session = open_session(run, ALONE, log, None)
    assert session.loop.state.step == 2
    (event,) = [event for event, _ in read_progress(Path(run.work_dir)) if event["event"] == "checkpointDamaged"]
    assert event["step"] == 4
    assert event["message"].startswith(SHARD)
    assert event["message"] in caplog.text
    assert sorted(path.name for path in folder_of(run).iterdir()) == ["step-00000002", "step-00000004.damaged"]


def test_with_no_whole_checkpoint_the_run_fails_and_names_the_files(tmp_path):
    run = trained(tmp_path, 2, 4)
    newer, older = complete_checkpoints(folder_of(run))
    damage(newer)
    (older.folder / SHARD).unlink()
    for _ in range(2):
        with pytest.raises(UserError) as error:
            open_alone(run)
        assert error.value.reason == "CheckpointFailed"
        assert f"no checkpoint is whole: {newer.folder}: {SHARD} (" in error.value.message
        assert f"{older.folder}: {SHARD} is missing" in error.value.message


def test_another_jobs_damaged_checkpoint_is_passed_over_and_left_as_it_is(tmp_path):
    other = trained(tmp_path / "other", 2, 4)
    damage(complete_checkpoints(folder_of(other))[0])
    (tmp_path / "corpus.jsonl").symlink_to(tmp_path / "other" / "corpus.jsonl")
    run = make_train_run(tmp_path, checkpoint={"resumeFrom": f"file://{tmp_path}/other/checkpoints"})
    assert open_alone(run)[0].loop.state.step == 2
    assert [checkpoint.step for checkpoint in complete_checkpoints(folder_of(other))] == [4, 2]


def test_the_checkpoint_of_another_model_is_refused_though_there_is_one_before(tmp_path):
    trained(tmp_path, 2)
    wider = {"config": {"hidden_size": 64}}
    other = trained(tmp_path / "wider", 4, model=wider)
    run = make_train_run(tmp_path)
    complete_checkpoints(folder_of(other))[0].folder.rename(folder_of(run) / "step-00000004")
    with pytest.raises(
        UserError, match=r"step-00000004 cannot be loaded into this model: .* where it is of another model"
    ):
        open_alone(run)
    assert [checkpoint.step for checkpoint in complete_checkpoints(folder_of(run))] == [4, 2]
