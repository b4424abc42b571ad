"""Pytest fixtures: one control plane a session with KubeRay, scheduler and every CRD, and a fresh namespace a test."""

from collections.abc import Iterator

import pytest

from cluster.control_plane import ControlPlane


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running one. A test that breaks it (removes CRDs, stops KubeRay) makes its own instead."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), scheduler=True, kuberay=True) as plane:
        yield plane


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace that nobody else uses; it goes with what is in it."""
    name = control_plane.create_namespace()
    yield name
    control_plane.delete_namespace(name)
