"""The same fixtures as the integration tests."""

from cluster.fixtures import control_plane, namespace
from integration.conftest import tracking

__all__ = ["control_plane", "namespace", "tracking"]
