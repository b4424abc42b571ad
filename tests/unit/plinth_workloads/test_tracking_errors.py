"""What a user is told of an MLflow that is away, or that refuses the credentials."""

import re

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException, get_error_code

from plinth_workloads.errors import UserError
from plinth_workloads.tracking_errors import is_not_ones_own, reaching

URI = "http://mlflow:5000"
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def answered(status, body):
    """As MLflow's client tells an answer that is no JSON."""
    message = f"API request to endpoint /x failed with error code {status} != 200. Response body: '{body}'"
    return MlflowException(message, error_code=get_error_code(status))


def of_artifact(status, body):
    """As it tells of a file."""
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} Error for url: x. Response text: {body}", response=response)


def told(error, **known):
    with pytest.raises(UserError) as raised, reaching(URI, **known):
        raise error
    return raised.value


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)


MEND = "put MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of a user with the right to this into the"
SECRET = "Secret plinth-mlflow of the job's namespace, or name another one in spec.tracking.secretRef"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (answered(401, "You are not authenticated. Please see https://x"), "401"),
        (answered(403, "Permission denied"), "403: Permission denied"),
        (answered(403, "Invalid Host header - x"), "403: Invalid Host header - x"),
        (RestException({"error_code": "PERMISSION_DENIED", "message": "no"}), "403"),
        (of_artifact(401, "who"), "401"),
        (of_artifact(403, "Permission denied"), "403: Permission denied"),
    ],
)
def test_credentials_that_are_refused_are_told_with_the_secret_they_come_from(error, words):
    found = told(error, secret="plinth-mlflow")
    assert found.reason == "TrackingDenied"
    assert found.message == f"MLflow at {URI} refuses requests without credentials ({words}); {MEND} {SECRET}"


@pytest.mark.parametrize(
    ("variables", "who"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "team-a", "MLFLOW_TRACKING_PASSWORD": "hush"}, "the credentials of team-a"),
        ({"MLFLOW_TRACKING_TOKEN": "hush"}, "the token"),
    ],
)
def test_who_is_refused_is_told_and_no_password(monkeypatch, variables, who):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = told(answered(401, "no"))
    assert f"refuses {who} (401)" in found.message
    assert "hush" not in found.message
    assert found.message.endswith("environment: on a cluster by plinth-mlflow or the Secret of spec.tracking.secretRef")


def test_credentials_that_were_good_once_are_told_apart():
    found = told(answered(401, "no"), secret="own", was_let_in=True)
    assert found.reason == "TrackingCredentialsChanged"
    assert re.search(
        r"\(401\), and did not when this attempt began; the next one takes what the Secret own", str(found)
    )
    assert told(answered(403, "Permission denied"), was_let_in=True).reason == "TrackingDenied"


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("API request to http://mlflow failed with exception timed out"),
        MlflowException("API request to endpoint /x failed with error code 502 != 200. Response body: ''"),
        requests.ConnectionError("refused"),
        of_artifact(502, "Bad Gateway"),
        ConnectionResetError(),
    ],
)
def test_an_mlflow_that_is_away_is_an_outage(error):
    found = told(error, secret="plinth-mlflow", was_let_in=True)
    assert (found.reason, "cannot be reached" in found.message) == ("TrackingUnavailable", True)


def test_any_other_refusal_is_mlflow_s_own():
    error = MlflowException("no such run", error_code=get_error_code(404))
    with pytest.raises(MlflowException, match="no such run"), reaching(URI):
        raise error


def test_what_is_somebody_elses_is_no_wrong_host():
    assert is_not_ones_own(answered(403, "Permission denied"))
    assert not is_not_ones_own(answered(403, "Invalid Host header - x"))
    assert not is_not_ones_own(answered(401, "Permission denied"))
