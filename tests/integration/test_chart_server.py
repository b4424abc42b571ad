"""The chart's MLflow as a process: who is let in, and what a namespace's user may and may not do."""

import asyncio
import time

import httpx
import pytest
from mlflow.exceptions import MlflowException

from chart_mlflow import ChartMlflow
from charts import MLFLOW, rendered
from plinth_api.run import RunTracking
from plinth_operator.mlflow import Mlflow, MlflowDenied
from plinth_workloads.errors import UserError
from plinth_workloads.tracking import Tracker, open_client, resolve_alias
from plinth_workloads.tracking_files import download

pytestmark = pytest.mark.integration

SEARCH = "/api/2.0/mlflow/experiments/search"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = ChartMlflow(rendered({**MLFLOW, "mlflow.workers": 1}), tmp_path_factory.mktemp("chart"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def log_in(monkeypatch):
    """Lets MLflow's client speak as somebody."""

    def log_in(account):
        for name, value in zip(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), account, strict=True):
            monkeypatch.setenv(name, value)

    return log_in


def as_operator(server, ask):
    """What the operator's own client answers to a question."""

    async def session():
        async with Mlflow(server.uri, "tests", has_users=True) as mlflow:
            return await ask(mlflow)

    return asyncio.run(session())


def run_of_operator(server, namespace, name):
    tags = {"plinth.uid": name}
    return as_operator(server, lambda mlflow: mlflow.create_run(f"{namespace}.{name}", "job", tags, namespace))


def search(server, **options):
    return httpx.post(f"{server.uri}{SEARCH}", json={"max_results": 1}, timeout=60, **options)


def tracker_of(server, run_id, **options):
    """As a job opens the run that the operator made."""
    fields = {"experiment": "unused", "run_name": "job", "secret": "plinth-mlflow", "tags": {"plinth.uid": "u"}}
    return Tracker(RunTracking(uri=server.uri, run_id=run_id, **fields), **options)


def trained(server, name, run_id, folder):
    """What a job does with its run and its model."""
    tracker = tracker_of(server, run_id, retry_seconds=())
    tracker.log_params({"lr": 0.1})
    tracker.log_metrics(1, {"train/loss": 1.0})
    tracker.log_tags({"plinth.phase": "Training"})
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    tracker.log_folder(folder, "model")
    version = tracker.register(name, "model", {"plinth.uid": "u"})
    tracker.set_version_tags(version, {"gate": "passed"})
    tracker.set_alias(version, "champion")
    tracker.close("FINISHED")
    return version


@pytest.mark.parametrize(
    "host",
    ["plinth-mlflow", "plinth-mlflow:5000", "plinth-mlflow.ops.svc:5000", "plinth-mlflow.ops.svc.cluster.local"],
)
def test_it_answers_to_the_names_of_its_service(server, host):
    assert search(server, auth=server.admin, headers={"Host": host}).status_code == 200


def test_it_answers_to_no_other_name(server):
    answer = search(server, auth=server.admin, headers={"Host": "plinth-mlflow.example.com"})
    assert (answer.status_code, "Invalid Host header" in answer.text) == (403, True)


@pytest.mark.parametrize("auth", [None, ("admin", "password1234"), ("admin", "")])
def test_nobody_is_let_in_without_the_password(server, auth):
    assert search(server, auth=auth).status_code == 401


def test_the_password_is_not_in_its_log(server):
    assert search(server, auth=server.admin).status_code == 200
    assert server.admin[1] not in server.log.read_text()


def test_a_namespace_does_what_jobs_and_services_do(server, log_in, tmp_path):
    log_in(server.admin)
    run = run_of_operator(server, "team-a", "tiny")
    log_in(server.add_namespace("team-a"))
    assert resolve_alias(server.uri, "models:/team-a.tiny@champion") is None
    version = trained(server, "team-a.tiny", run.run_id, tmp_path / "made")
    assert resolve_alias(server.uri, "models:/team-a.tiny@champion") == version
    assert (download(server.uri, version.uri, tmp_path / "read") / "config.json").read_text() == "{}"
    log_in(server.admin)
    (facts,) = as_operator(server, lambda mlflow: mlflow.read_runs([run.experiment_id], [run.run_id]))
    assert (facts.status, facts.step) == ("FINISHED", 1)
    assert as_operator(server, lambda mlflow: mlflow.resolve_alias("models:/team-a.tiny@champion")) == version.uri


def test_a_namespace_neither_reads_nor_moves_the_models_of_another(server, log_in, tmp_path):
    log_in(server.admin)
    run = run_of_operator(server, "team-b", "theirs")
    log_in(server.add_namespace("team-b"))
    version = trained(server, "team-b.theirs", run.run_id, tmp_path / "made")
    log_in(server.add_namespace("team-c"))
    client = open_client(server.uri)
    with pytest.raises(MlflowException, match="Permission denied"):
        client.get_registered_model("team-b.theirs")
    with pytest.raises(MlflowException, match="Permission denied"):
        client.set_registered_model_alias("team-b.theirs", "champion", version.version)
    with pytest.raises(MlflowException, match="Permission denied"):
        client.create_model_version("team-b.theirs", source=f"runs:/{run.run_id}/model", run_id=run.run_id)
    with pytest.raises(UserError, match=r"or is not for who asks to read: .*Permission denied"):
        download(server.uri, version.uri, tmp_path / "read")


def test_a_namespace_writes_to_its_own_experiments_and_reads_no_others(server, log_in):
    log_in(server.admin)
    before, foreign = run_of_operator(server, "team-d", "before"), run_of_operator(server, "team-dd", "foreign")
    account = server.add_namespace("team-d")
    after = run_of_operator(server, "team-d", "after")
    log_in(account)
    client = open_client(server.uri)
    for run in (before, after):
        client.log_metric(run.run_id, "loss", 1.0)
    with pytest.raises(MlflowException, match="Permission denied"):
        client.get_run(foreign.run_id)
    with pytest.raises(MlflowException, match="Permission denied"):
        client.log_metric(foreign.run_id, "loss", 1.0)


@pytest.mark.parametrize("account", [None, ("team-g", "wrong"), ("team-g", "")])
def test_a_job_without_credentials_is_told_at_once_which_secret_it_lacks(server, log_in, monkeypatch, account):
    log_in(server.admin)
    run = run_of_operator(server, "team-g", "tiny")
    if account:
        log_in(account)
    else:
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    started = time.monotonic()
    with pytest.raises(
        UserError, match=r"\(401\); .*Secret plinth-mlflow of the job's .*spec.tracking.secretRef"
    ) as told:
        tracker_of(server, run.run_id)
    assert told.value.reason == "TrackingDenied"
    assert time.monotonic() - started < 10
    with pytest.raises(UserError, match=r"\(401\)") as told:
        resolve_alias(server.uri, "models:/team-g.tiny@champion")
    assert told.value.reason == "TrackingDenied"


def test_a_job_may_not_use_the_run_of_another_namespace(server, log_in):
    log_in(server.admin)
    foreign = run_of_operator(server, "team-h", "foreign")
    log_in(server.add_namespace("team-i"))
    with pytest.raises(UserError, match=r"refuses the credentials of team-i \(403: Permission denied\)") as told:
        tracker_of(server, foreign.run_id)
    assert told.value.reason == "TrackingDenied"


def test_a_password_that_changes_while_a_job_runs_ends_the_attempt_without_waiting(server, log_in):
    log_in(server.admin)
    run = run_of_operator(server, "team-l", "tiny")
    log_in(server.add_namespace("team-l"))
    tracker = tracker_of(server, run.run_id, retry_seconds=(60,) * 3)
    server.add_namespace("team-l")
    started = time.monotonic()
    with pytest.raises(UserError, match="the next one takes what the Secret plinth-mlflow has then") as told:
        tracker.log_params({"lr": 0.1})
    assert told.value.reason == "TrackingCredentialsChanged"
    assert time.monotonic() - started < 30


def test_an_operator_that_is_no_administrator_says_so(server, log_in):
    log_in(("admin", "wrong"))
    with pytest.raises(MlflowDenied, match="401: You are not authenticated"):
        run_of_operator(server, "team-m", "tiny")
    log_in(server.add_namespace("team-m"))
    log_in(server.add_namespace("team-n"))
    with pytest.raises(MlflowDenied, match="403: Permission denied"):
        as_operator(server, lambda mlflow: mlflow.resolve_alias("models:/team-m.tiny@champion"))


def test_a_second_time_gives_another_password(server):
    first = server.add_namespace("team-e")
    second = server.add_namespace("team-e")
    assert first[1] != second[1]
    assert search(server, auth=first).status_code == 401
    assert search(server, auth=second).status_code == 200


def test_it_starts_again_with_what_it_had(server):
    account = server.add_namespace("team-f")
    server.stop()
    server.start()
    assert search(server, auth=account).status_code == 200
    assert search(server, auth=server.admin).status_code == 200
