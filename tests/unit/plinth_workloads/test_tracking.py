"""What of a run's tags and metrics is sent, to a client that remembers it."""

from types import SimpleNamespace

from mlflow.exceptions import MlflowException

from plinth_api.run import RunTracking
from plinth_workloads.tracking import Tracker

OUTAGE = MlflowException("API request to http://mlflow failed with exception timed out")


class FakeClient:
    """An MLflow with one run; the first requests may find it away."""

    def __init__(self, *, tags=(), status="RUNNING", outages=0):
        self.run = SimpleNamespace(
            info=SimpleNamespace(experiment_id="1", run_id="r", status=status), data=SimpleNamespace(tags=dict(tags))
        )
        self.batches = []
        self.statuses = []
        self._outages = outages

    def get_run(self, run_id):
        return self.run

    def log_batch(self, run_id, metrics, tags):
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


def tracker(client):
    tracking = RunTracking(uri="http://mlflow", experiment="e", run_name="r", run_id="r", tags={})
    return Tracker(tracking, client=client, retry_seconds=(0.01,) * 3)


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
