"""The entry point of a training process: the last line of a run that failed."""

import json

from makers import make_pretrain_job, make_resolve_settings
from plinth_api.resolve import resolve_train_run
from plinth_workloads.errors import UserError
from plinth_workloads.train.__main__ import _report_failure
from plinth_workloads.train.progress import read_progress
from plinth_workloads.train.watchdog import tell_work_dir

DIED = UserError("UserCodeError", "a worker failed: ray.exceptions.ActorDiedError: The actor died unexpectedly")
STUCK = UserError("NoProgress", "nothing has moved for 10 s: rank 1 of 2 is at a:1 b")


def reported(folder, error, capsys):
    """The last line, and every failure in the progress file."""
    run = resolve_train_run(make_pretrain_job(), make_resolve_settings(work_dir=str(folder)), {})
    assert _report_failure(run, error) == 1
    events = [(event["event"], event["reason"], event["message"]) for event, _ in read_progress(folder)]
    return json.loads(capsys.readouterr().out.splitlines()[-1]), events


def test_an_error_is_one_record(tmp_path, capsys):
    record, events = reported(tmp_path, DIED, capsys)
    assert record == {"plinth": "failure", "reason": DIED.reason, "message": DIED.message}
    assert events == [("failed", DIED.reason, DIED.message)]


def test_workers_that_a_watchdog_has_ended_are_told_as_it_told_them(tmp_path, capsys):
    tell_work_dir(tmp_path, STUCK)
    record, events = reported(tmp_path, DIED, capsys)
    assert record == {"plinth": "failure", "reason": "NoProgress", "message": STUCK.message}
    assert events == [("failed", "NoProgress", STUCK.message)]
