"""A run on as many workers as there is room for, over a cluster whose room and losses are planned."""

import threading
import time
from pathlib import Path

import pytest

from plinth_api.common import Elastic
from plinth_workloads.errors import UserError
from plinth_workloads.train.elastic import Pace, WorkersLost, train_elastically
from plinth_workloads.train.progress import STOP_FILE, ProgressLog, read_progress
from training import make_train_run

PACE = Pace(look=0.02, settle=0.2, between=0.01, wait=0.5)


def elastic_run(folder):
    run = make_train_run(folder, compute={"workers": 2}, training={"globalBatchSize": 12, "steps": 9})
    elastic = Elastic(min_workers=2, max_workers=6)
    return run.model_copy(update={"workers": run.workers.model_copy(update={"elastic": elastic})})


class PlannedCluster:
    """Trains by what each start is to do: finish, be stopped, lose a worker, fail, or wait to be asked to stop."""

    def __init__(self, run, room, *starts):
        self.folder, self.has_room, self.starts = Path(run.work_dir), room, list(starts)
        self.counts, self.steps, self.asked = [], 0, []

    def room(self):
        return self.has_room

    def ask_for(self, more):
        self.asked.append(more)

    def train(self, run):
        self.counts.append(run.workers.num_workers)
        self.tell("run")
        self.starts.pop(0)(self)

    def tell(self, event, **values):
        log = ProgressLog(self.folder)
        log.write(event, **values)
        log.close()

    def save(self):
        self.steps += 1
        self.tell("step", step=self.steps)
        self.tell("checkpoint", step=self.steps)


def finishes(cluster):
    cluster.save()
    cluster.tell("model", name="tiny")


def loses_a_worker(cluster):
    raise WorkersLost("UserCodeError", "a worker failed: ray.exceptions.ActorDiedError: its node is gone")


def saves_and_loses_a_worker(cluster):
    cluster.save()
    loses_a_worker(cluster)


def stops_when_asked(cluster):
    cluster.save()
    until = time.monotonic() + 10
    while not (cluster.folder / STOP_FILE).exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    cluster.save()
    cluster.tell("stopped", step=cluster.steps)


def gets_room(room):
    def train(cluster):
        cluster.has_room = room
        stops_when_asked(cluster)

    return train


def is_told_to_go(cluster):
    (cluster.folder / STOP_FILE).touch()
    stops_when_asked(cluster)
    cluster.has_room -= 1


def events(cluster, name):
    return [event for event, _ in read_progress(cluster.folder) if event["event"] == name]


def test_it_takes_the_most_workers_whose_number_divides_the_rows(tmp_path):
    run = elastic_run(tmp_path)
    cluster = PlannedCluster(run, 5, finishes)
    train_elastically(run, cluster, threading.Event(), PACE)
    assert cluster.counts == [4]


def test_it_saves_and_goes_on_as_more_once_there_is_room(tmp_path):
    run = elastic_run(tmp_path)
    cluster = PlannedCluster(run, 2, gets_room(3), gets_room(9), finishes)
    train_elastically(run, cluster, threading.Event(), PACE)
    assert cluster.counts == [2, 3, 6]
    # For as many more as six, as soon as its workers have their places; nothing between two sessions.
    assert cluster.asked[:4] == [4, 0, 3, 0]
    assert [event["count"] for event in events(cluster, "workers")] == [2, 3, 6]
    assert not (cluster.folder / STOP_FILE).exists()


def test_workers_that_have_not_trained_yet_are_left_alone(tmp_path):
    run = elastic_run(tmp_path)

    def starts_slowly(cluster):
        cluster.has_room = 6
        time.sleep(10 * PACE.look)
        assert not (cluster.folder / STOP_FILE).exists()
        finishes(cluster)

    cluster = PlannedCluster(run, 2, starts_slowly)
    train_elastically(run, cluster, threading.Event(), PACE)
    assert cluster.counts == [2]


def test_the_others_go_on_without_one_that_is_lost_or_told_to_go(tmp_path):
    run = elastic_run(tmp_path)

    def loses_a_node(cluster):
        cluster.has_room = 3
        saves_and_loses_a_worker(cluster)

    cluster = PlannedCluster(run, 4, loses_a_node, is_told_to_go, finishes)
    train_elastically(run, cluster, threading.Event(), PACE)
    assert cluster.counts == [4, 3, 2]
    (lost,) = events(cluster, "workersLost")
    assert "its node is gone" in lost["message"]


def test_a_run_that_loses_its_workers_again_and_again_fails(tmp_path):
    run = elastic_run(tmp_path)
    cluster = PlannedCluster(run, 2, *[saves_and_loses_a_worker] * 6, *[loses_a_worker] * 4)
    with pytest.raises(WorkersLost, match="its node is gone"):
        train_elastically(run, cluster, threading.Event(), PACE)
    assert cluster.counts == [2] * 9


def test_a_run_that_fails_fails_at_once(tmp_path):
    run = elastic_run(tmp_path)

    def fails(cluster):
        raise UserError("DataError", "rows.jsonl, line 3: no JSON")

    with pytest.raises(UserError, match="line 3"):
        train_elastically(run, PlannedCluster(run, 2, fails), threading.Event(), PACE)


def test_it_stops_for_good_when_its_own_process_is_asked_to(tmp_path):
    run, asked = elastic_run(tmp_path), threading.Event()

    def is_asked(cluster):
        asked.set()
        is_told_to_go(cluster)

    cluster = PlannedCluster(run, 2, is_asked)
    train_elastically(run, cluster, asked, PACE)
    assert cluster.counts == [2]


def test_it_waits_for_the_fewest_workers_and_not_forever(tmp_path):
    run = elastic_run(tmp_path)
    cluster = PlannedCluster(run, 1, finishes)
    threading.Timer(0.2, setattr, (cluster, "has_room", 2)).start()
    train_elastically(run, cluster, threading.Event(), PACE)
    assert cluster.counts == [2]
    with pytest.raises(UserError, match=r"fewer than 2 workers \(spec.compute.elastic.minWorkers\): 1; lower it"):
        train_elastically(run, PlannedCluster(run, 1), threading.Event(), PACE)


def test_a_request_to_stop_ends_the_wait_for_workers(tmp_path):
    run, asked = elastic_run(tmp_path), threading.Event()
    asked.set()
    cluster = PlannedCluster(run, 1)
    train_elastically(run, cluster, asked, PACE)
    assert cluster.counts == []
