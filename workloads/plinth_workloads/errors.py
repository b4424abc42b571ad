"""A failure that has a reason: what the user, or the operator, can act upon."""

import json
from typing import Literal

Reason = Literal[
    "AccessDenied",
    "CheckpointFailed",
    "CollectiveTimeout",
    "CudaOutOfMemory",
    "DatasetNotFound",
    "HostOutOfMemory",
    "InvalidData",
    "InvalidSpec",
    "LossNaN",
    "ModelLoadFailed",
    "ModelNotFound",
    "NoProgress",
    "StartupTimeout",
    "TrackingCredentialsChanged",
    "TrackingDenied",
    "TrackingUnavailable",
    "UserCodeError",
]


class UserError(Exception):
    """A failure with a sentence for the user in place of a traceback.

    Attributes:
        reason: One of the documented reasons.
        message: What is wrong, where, and what to do about it.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:
        return (type(self), (self.reason, self.message))


def failure_record(failure: UserError) -> str:
    """The last line of what failed, for whoever reads its output: one JSON object."""
    return json.dumps({"plinth": "failure", "reason": failure.reason, "message": failure.message})


def as_user_error(error: BaseException) -> UserError:
    """The failure to tell: a UserError as it is, anything else as UserCodeError with its last line."""
    if isinstance(error, UserError):
        return error
    message = (str(error).strip().splitlines() or [""])[-1]
    return UserError("UserCodeError", f"{type(error).__name__}: {message}")
