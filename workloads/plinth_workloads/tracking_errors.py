"""MLflow's errors, as what a user can act upon: it is away, or it refuses the credentials.

Enters: whatever MLflow's client raises. Leaves: a UserError of one sentence, or the error as it was. It stands beside
`tracking.py`, which asks MLflow, and like it imports MLflow when that is first needed.
"""

import contextlib
import os
import re
from collections.abc import Iterator

from plinth_workloads.errors import UserError

_UNAUTHENTICATED, _FORBIDDEN = 401, 403
_WORDS = re.compile(r"(?:Response body: '|Response text: )(?P<words>.{1,120})", re.DOTALL)


@contextlib.contextmanager
def reaching(uri: str, *, secret: str | None = None, was_let_in: bool = False) -> Iterator[None]:
    """Turn MLflow's errors of the network and of credentials into one sentence.

    Args:
        uri: Of the MLflow that is asked.
        secret: The Secret with the credentials, where it is known.
        was_let_in: Whether MLflow has taken the same credentials before.

    Raises:
        UserError: TrackingUnavailable, TrackingDenied or TrackingCredentialsChanged.
    """
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.exceptions.RequestException) as error:
        status = refusal_of(error)
        if status == _UNAUTHENTICATED and was_let_in:
            raise UserError("TrackingCredentialsChanged", _changed(uri, secret)) from error
        if status is not None:
            raise UserError("TrackingDenied", _denied(uri, status, error, secret)) from error
        if isinstance(error, MlflowException) and not is_outage(error):
            raise
        raise UserError("TrackingUnavailable", _unreachable(uri, error)) from error
    except (ConnectionError, sqlalchemy.exc.OperationalError) as error:
        raise UserError("TrackingUnavailable", _unreachable(uri, error)) from error


@contextlib.contextmanager
def looking_for(uri: str, tracking_uri: str) -> Iterator[None]:
    """Within `reaching`: turn what MLflow answers where it does not have `uri` into one sentence.

    Raises:
        UserError: ModelNotFound.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if is_outage(error) or (refusal_of(error) and not is_not_ones_own(error)):
            raise
        foreign = ", or is not for who asks to read" if is_not_ones_own(error) else ""
        raise UserError(
            "ModelNotFound", f"{uri} is not in the registry of {tracking_uri}{foreign}: {error.message}"
        ) from error


def is_outage(error: Exception) -> bool:
    """Whether MLflow did not answer, as opposed to having answered with a refusal."""
    message = str(error)
    return "API request to" in message and ("failed with exception" in message or "error code 5" in message)


def refusal_of(error: Exception) -> int | None:
    """The status with which MLflow refused who asks, 401 or 403; None for any other error."""
    import requests
    from mlflow.exceptions import MlflowException

    status: int | None = None
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif isinstance(error, requests.exceptions.HTTPError) and error.response is not None:
        # Artifacts do not come by MLflow's own requests.
        status = error.response.status_code
    return status if status in (_UNAUTHENTICATED, _FORBIDDEN) else None


def is_not_ones_own(error: Exception) -> bool:
    """Whether MLflow with passwords refuses this one thing: somebody else's and what does not exist look the same.

    A host name that MLflow does not answer to is a 403 as well, of other words.
    """
    return refusal_of(error) == _FORBIDDEN and "Response body: 'Permission denied'" in str(error)


def _unreachable(uri: str, error: Exception) -> str:
    return (
        f"MLflow at {uri} cannot be reached ({type(error.__cause__ or error).__name__}); start it, or correct "
        "MLFLOW_TRACKING_URI"
    )


def _denied(uri: str, status: int, error: Exception, secret: str | None) -> str:
    words = _WORDS.search(str(error)) if status == _FORBIDDEN else None
    told = f"{status}: {words['words'].strip(chr(39))}" if words else str(status)
    place = (
        f"the Secret {secret} of the job's namespace, or name another one in spec.tracking.secretRef"
        if secret
        else "the environment: on a cluster by plinth-mlflow or the Secret of spec.tracking.secretRef"
    )
    return (
        f"MLflow at {uri} refuses {_who()} ({told}); put MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of a "
        f"user with the right to this into {place}"
    )


def _changed(uri: str, secret: str | None) -> str:
    place = f"the Secret {secret}" if secret else "the environment"
    return (
        f"MLflow at {uri} refuses {_who()} (401), and did not when this attempt began; the next one takes what "
        f"{place} has then"
    )


def _who() -> str:
    """Who MLflow's client says that it is."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user:
        return f"the credentials of {user}"
    return "the token" if os.environ.get("MLFLOW_TRACKING_TOKEN") else "requests without credentials"
