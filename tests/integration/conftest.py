"""Fixtures of the tests that need a Kubernetes or a browser; here and not in each file, so that they are shared."""

from collections.abc import AsyncIterator, Iterator

import pytest
from playwright.async_api import Browser

from browser import running_browser
from cluster.control_plane import ControlPlane
from cluster.fixtures import control_plane, namespace
from lives import Runs
from namespaces import Namespace
from operators import Disturbed, operator_behind_proxies
from servers import MlflowServer

__all__ = ["browser", "cluster", "control_plane", "disturbed", "namespace", "runs", "tracking"]


@pytest.fixture(scope="module")
async def browser(anyio_backend: str) -> AsyncIterator[Browser]:
    """One for each file that asks for it, in that file's event loop; its `anyio_backend` has the scope of a module."""
    async with running_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A running MLflow. A test that stops it makes its own instead."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def disturbed(
    tmp_path_factory: pytest.TempPathFactory, control_plane: ControlPlane, tracking: MlflowServer
) -> Iterator[Disturbed]:
    """An operator behind proxies that can fail, one for each file that asks for it."""
    with operator_behind_proxies(tmp_path_factory.mktemp("operator"), control_plane, tracking.uri) as disturbed:
        yield disturbed


@pytest.fixture
def cluster(control_plane: ControlPlane, namespace: str, disturbed: Disturbed) -> Namespace:
    """A fresh namespace that this operator serves."""
    return Namespace(control_plane, namespace, disturbed.operator.log)


@pytest.fixture
def runs(tracking: MlflowServer) -> Runs:
    """The MLflow runs of resources."""
    return Runs(tracking.uri)
