"""What of a run's tags and metrics is sent, to a client that remembers it."""

import time
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException, get_error_code

from plinth_api.run import RunTracking
from plinth_workloads.errors import UserError
from plinth_workloads.tracking import Tracker

OUTAGE = MlflowException("API request to http://mlflow failed with exception timed out")


class FakeClient:
    """An MLflow with one run; the first requests may find it away."""

    def __init__(self, *, tags=(), status="RUNNING", outages=0, refusal=None):
        self.run = SimpleNamespace(
            info=SimpleNamespace(experiment_id="1", run_id="r", status=status), data=SimpleNamespace(tags=dict(tags))
        )
        self.batches = []
        self.statuses = []
        self.refusal = refusal
        self._outages = outages

    def get_run(self, run_id):
        if self.refusal:
            raise self.refusal
        return self.run

    def log_batch(self, run_id, metrics, tags):
        if self.refusal:
            raise self.refusal
        if self._outages:
            self._outages -= 1
            raise OUTAGE
        self.batches.append(([metric.key for metric in metrics], {tag.key: tag.value for tag in tags}))

    def delete_tag(self, run_id, name):
        del self.run.data.tags[name]

    def set_terminated(self, run_id, status):
        self.statuses.append(status)

    @property
    def tags(self):
        return [tags for _, tags in self.batches if tags]


def tracker(client, retry_seconds=(0.01,) * 3):
    tracking = RunTracking(uri="http://mlflow", experiment="e", run_name="r", run_id="r", secret="own", tags={})
    return Tracker(tracking, client=client, retry_seconds=retry_seconds)


def test_tags_go_with_the_metrics_and_before_the_end():
    client = FakeClient()
    tracked = tracker(client)
    tracked.log_metrics(1, {"train/loss": 1.0})
    tracked.log_tags({"plinth.phase": "training", "plinth.totalSteps": "10"})
    tracked.close("FINISHED")
    assert client.batches == [(["train/loss"], {"plinth.phase": "training", "plinth.totalSteps": "10"})]
    assert client.statuses == ["FINISHED"]


def test_a_tag_is_sent_when_it_changes_only():
    client = FakeClient(tags={"plinth.totalSteps": "10"})
    tracked = tracker(client)
    tracked.log_tags({"plinth.totalSteps": "10", "plinth.checkpointStep": "1"})
    tracked._send_pending()
    tracked.log_tags({"plinth.totalSteps": "10", "plinth.checkpointStep": "1"})
    tracked._send_pending()
    tracked.log_tags({"plinth.checkpointStep": "2"})
    tracked.log_tags({"plinth.checkpointStep": "3"})
    tracked.close("RUNNING")
    assert client.tags == [{"plinth.checkpointStep": "1"}, {"plinth.checkpointStep": "3"}]
    assert client.statuses == []


def test_an_outage_loses_no_tag():
    client = FakeClient(outages=2)
    tracked = tracker(client)
    tracked.log_tags({"plinth.phase": "failed"})
    tracked.close("FAILED")
    assert client.tags == [{"plinth.phase": "failed"}]


def test_a_request_holds_no_more_than_mlflow_takes():
    client = FakeClient()
    tracked = tracker(client)
    for step in range(2000):
        tracked.log_metrics(step, {"train/loss": 1.0})
    tracked.log_tags({f"plinth.metric.{number}": "1" for number in range(50)})
    tracked.close("RUNNING")
    assert sum(len(metrics) for metrics, _ in client.batches) == 2000
    assert max(len(metrics) + len(tags) for metrics, tags in client.batches) <= 1000


def test_what_an_earlier_attempt_left_is_removed_and_its_run_runs_again():
    client = FakeClient(tags={"plinth.failureReason": "LossNaN", "plinth.uid": "u"}, status="FAILED")
    tracked = tracker(client)
    tracked.remove_tags(("plinth.failureReason", "plinth.failureMessage"))
    tracked.close("RUNNING")
    assert client.run.data.tags == {"plinth.uid": "u"}
    assert client.statuses == ["RUNNING"]


REFUSALS = {
    status: MlflowException(
        f"API request to endpoint /x failed with error code {status} != 200", get_error_code(status)
    )
    for status in (401, 403)
}


@pytest.mark.parametrize("status", REFUSALS)
def test_who_is_not_let_in_is_told_which_secret_to_mend(status):
    with pytest.raises(UserError, match=rf"\({status}\).* the Secret own of the job's namespace") as raised:
        tracker(FakeClient(refusal=REFUSALS[status]))
    assert raised.value.reason == "TrackingDenied"


@pytest.mark.parametrize(("status", "reason"), [(401, "TrackingCredentialsChanged"), (403, "TrackingDenied")])
def test_a_refusal_is_no_outage_that_is_waited_for(status, reason):
    client = FakeClient()
    tracked = tracker(client, retry_seconds=(60.0,) * 3)
    client.refusal = REFUSALS[status]
    tracked.log_metrics(1, {"train/loss": 1.0})
    for action in (lambda: tracked.log_params({"lr": 0.1}), lambda: tracked.close("FINISHED")):
        started = time.monotonic()
        with pytest.raises(UserError) as raised:
            action()
        assert raised.value.reason == reason
        assert time.monotonic() - started < 10
