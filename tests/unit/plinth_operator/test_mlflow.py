"""What the operator asks of MLflow and reads from the answers of its REST API."""

import asyncio
import base64
import json
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self, cast

import aiohttp
import pytest

from plinth_operator.mlflow import Mlflow, MlflowDenied, MlflowError, MlflowUnavailable, _run_facts

INFO = {"run_id": "r1", "experiment_id": "7", "status": "RUNNING"}


def metric(key: str, step: int, timestamp: int, value: Any = 1.0) -> dict[str, Any]:
    return {"key": key, "value": value, "step": step, "timestamp": timestamp}


def test_a_run_has_its_newest_step_and_save_with_their_times():
    metrics = [metric("train/loss", 12, 1_000_999), metric("train/checkpoint_step", 10, 900_000, 10.0)]
    found = _run_facts({"info": INFO, "data": {"metrics": [*metrics, metric("system/cpu", 3, 1)], "tags": []}})
    assert (found.step, found.step_at) == (12, datetime(1970, 1, 1, 0, 16, 40, tzinfo=UTC))
    assert (found.saved_step, found.saved_at) == (10, datetime(1970, 1, 1, 0, 15, tzinfo=UTC))
    assert found.metrics.keys() == {"train/loss", "train/checkpoint_step"}


def test_a_run_that_has_logged_nothing_has_neither():
    found = _run_facts({"info": INFO})
    assert (found.step, found.step_at, found.saved_step, found.saved_at) == (None, None, None, None)


@pytest.mark.parametrize("timestamp", [10**18, -(10**18)])
def test_a_time_that_no_calendar_has_is_left_out(timestamp: int):
    found = _run_facts({"info": INFO, "data": {"metrics": [metric("train/loss", 12, timestamp)]}})
    assert (found.step, found.step_at) == (12, None)


class Answer:
    def __init__(self, status: int, body: Any) -> None:
        self.status = status
        self._body = body if isinstance(body, str) else json.dumps(body)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: Any) -> None:
        pass

    async def text(self) -> str:
        return self._body


class FakeSession:
    """MLflow's answers by the end of the path, and what was asked."""

    def __init__(self, answers: Mapping[str, tuple[int, Any]]) -> None:
        self.asked: list[tuple[str, Any]] = []
        self._answers = answers

    def request(self, method: str, url: str, *, params: Any, json: Any) -> Answer:
        self.asked.append((url.removeprefix("http://mlflow/api/"), json))
        return Answer(*next(answer for path, answer in self._answers.items() if url.endswith(path)))


NEW = {"experiments/create": (200, {"experiment_id": "7"}), "runs/create": (200, {"run": {"info": INFO}})}
EXISTS = {
    "experiments/create": (400, {"error_code": "RESOURCE_ALREADY_EXISTS"}),
    "experiments/get-by-name": (200, {"experiment": {"experiment_id": "7"}}),
}
GRANT = "permissions/grant"


def create_runs(answers: Mapping[str, tuple[int, Any]], *, has_users: bool = True, times: int = 1) -> list[Any]:
    """What is asked for a number of runs of one experiment."""
    session = FakeSession(answers)

    async def main() -> None:
        mlflow = Mlflow("http://mlflow/", "tests", has_users=has_users)
        mlflow._session = cast(aiohttp.ClientSession, session)
        for _ in range(times):
            assert (await mlflow.create_run("team-a.tiny", "tiny", {}, "team-a")).run_id == "r1"

    asyncio.run(main())
    return session.asked


@pytest.mark.parametrize("experiments", [NEW, {**NEW, **EXISTS}], ids=["new", "there already"])
@pytest.mark.parametrize(
    "granted",
    [
        pytest.param((200, {}), id="granted"),
        pytest.param((400, {"error_code": "RESOURCE_ALREADY_EXISTS"}), id="granted before"),
        pytest.param((404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}), id="to nobody yet"),
    ],
)
def test_the_user_of_a_namespace_may_write_to_its_experiment(experiments: Any, granted: tuple[int, Any]):
    asked = create_runs({**experiments, GRANT: granted}, times=3)
    grants = [body for path, body in asked if path == "3.0/mlflow/users/permissions/grant"]
    scope = {"username": "team-a", "resource_type": "experiment", "resource_id": "7"}
    assert grants == [{**scope, "permission": "EDIT"}]


def test_nobody_is_granted_anything_where_mlflow_has_no_users():
    assert [path for path, _ in create_runs(NEW, has_users=False)] == [
        "2.0/mlflow/experiments/create",
        "2.0/mlflow/runs/create",
    ]


def test_a_right_that_cannot_be_granted_is_an_error():
    with pytest.raises(MlflowError, match="INTERNAL: broken"):
        create_runs({**NEW, GRANT: (400, {"error_code": "INTERNAL", "message": "broken"})})


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((401, "You are not\n authenticated."), MlflowDenied, "401: You are not authenticated."),
        ((403, "Permission denied"), MlflowDenied, "403: Permission denied"),
        ((403, {"error_code": "PERMISSION_DENIED"}), MlflowDenied, '403: {"error_code": "PERMISSION_DENIED"}'),
        ((401, "x" * 500), MlflowDenied, "401: " + "x" * 120),
        ((429, {}), MlflowUnavailable, "status 429"),
        ((502, "<html>"), MlflowUnavailable, "status 502 without JSON"),
        ((503, {}), MlflowUnavailable, "status 503"),
        ((200, []), MlflowUnavailable, "status 200"),
        ((400, {"error_code": "BAD_REQUEST", "message": "no"}), MlflowError, "BAD_REQUEST: no"),
    ],
)
def test_an_answer_is_a_refusal_of_credentials_an_outage_or_an_error(
    answer: tuple[int, Any], error: type[Exception], message: str
):
    with pytest.raises(error) as raised:
        create_runs({"experiments/create": answer})
    assert str(raised.value) == message


def test_credentials_go_into_the_header_and_nothing_warns_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pä:ss")

    async def header() -> str:
        async with Mlflow("http://mlflow", "tests") as mlflow:
            assert mlflow._session is not None
            return mlflow._session.headers["Authorization"]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asyncio.run(header()) == "Basic " + base64.b64encode("admin:pä:ss".encode()).decode()
