"""The operator's clock, in one place so that everything else takes the time as an argument."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The time to the second, which is what Kubernetes keeps."""
    return datetime.now(UTC).replace(microsecond=0)
