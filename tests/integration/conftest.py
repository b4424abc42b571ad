"""Fixtures of the tests that need a Kubernetes; named here and not in each file, so that a session has one of them."""

from collections.abc import Iterator

import pytest

from cluster.fixtures import control_plane, namespace
from servers import MlflowServer

__all__ = ["control_plane", "namespace", "tracking"]


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A running MLflow. A test that stops it makes its own instead."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()
