"""What a session tells of memory before it starts, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from plinth_workloads.errors import UserError
from plinth_workloads.train import fitting
from plinth_workloads.train.export import export_model
from plinth_workloads.train.memory import GIB, Room
from plinth_workloads.train.progress import ProgressLog, read_progress
from plinth_workloads.train.session import open_session
from training import ALONE, make_train_run, make_tuning_run, open_alone


def container_of(monkeypatch, size):
    room = Room(size, "the container's memory", "spec.compute.perWorker.memory")
    monkeypatch.setattr(fitting, "room_for_training", lambda device, model_bytes: room)
    monkeypatch.setattr(fitting, "host_room", lambda: replace(room, size=room.size + 64 * GIB))


def events_of(run, name):
    return [event for event, _ in read_progress(Path(run.work_dir)) if event["event"] == name]


def test_a_run_that_cannot_fit_is_refused_before_its_first_step(tmp_path, monkeypatch):
    container_of(monkeypatch, 2**20)
    with pytest.raises(UserError) as error:
        open_session(make_train_run(tmp_path), ALONE, None, None)
    assert error.value.reason == "InvalidSpec"
    assert "a worker needs about 0.01 GiB, at least 0.00, but has 0.00 of the container's memory" in error.value.message
    assert error.value.message.endswith("or raise spec.compute.perWorker.memory")


LARGE = {"config": {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 96}}


def test_a_model_too_large_to_be_loaded_is_refused_before_anything_of_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "host_room", lambda: Room(64 * GIB, "the machine's memory", None))
    with pytest.raises(UserError) as error:
        open_session(make_train_run(tmp_path, model=LARGE), ALONE, None, None)
    assert (error.value.reason, error.value.message) == (
        "InvalidSpec",
        "spec.model: its weights take 1536.05 GiB in float32, and every worker loads them whole before they are "
        "sharded, but has 64.00 of the machine's memory; use machines with more memory, or take a smaller model",
    )


def test_a_stored_model_too_large_to_be_loaded_is_refused(tmp_path, monkeypatch):
    session, _ = open_alone(make_train_run(tmp_path / "base"))
    export_model(session.run, session.model, session.data.tokenizer, ALONE, tmp_path / "model")
    room = Room(4 * 40480 - 1, "the container's memory", "spec.compute.perWorker.memory")
    monkeypatch.setattr(fitting, "host_room", lambda: room)
    monkeypatch.setattr(fitting, "room_for_training", lambda device, model_bytes: replace(room, size=GIB))
    run = make_tuning_run(tmp_path / "tune", tmp_path / "model")
    with pytest.raises(UserError, match=r"spec.model: its weights .*; raise spec.compute.perWorker.memory"):
        open_session(run, ALONE, None, None)
    monkeypatch.setattr(fitting, "host_room", lambda: replace(room, size=4 * 40480))
    assert open_session(run, ALONE, None, None).loop.num_steps == 10


def test_one_row_is_what_must_fit_where_workers_find_the_size(tmp_path, monkeypatch):
    container_of(monkeypatch, 2**21)
    with pytest.raises(UserError, match="set it to auto"):
        open_session(make_train_run(tmp_path, training={"microBatchSize": 8}), ALONE, None, None)
    run = make_train_run(tmp_path, training={"microBatchSize": "auto"})
    log = ProgressLog(Path(run.work_dir))
    session = open_session(run, ALONE, log, None)
    (memory,) = events_of(run, "memory")
    assert (memory["room"], memory["rows"], memory["weights"]) == (2**21, 1, 4 * 40480)
    (found,) = events_of(run, "microBatchSize")
    assert found["rows"] == session.run.training.micro_batch_size
    assert [event["event"] for event in events_of(run, "started")] == ["started"]
