"""Fixtures of the tests on a node: one node and one installation for all of them, a namespace for each that asks."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.node import Node
from faults import Faults
from plinth_release import Release
from teams import Team

FAULTS = Path(__file__).parents[2] / ".plinth" / "e2e" / "faults.json"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where logs and volumes are."""
    return tmp_path_factory.mktemp("node")


@pytest.fixture(scope="session")
def node(folder: Path) -> Iterator[Node]:
    """A node that is ready."""
    with Node(folder / "node") as node:
        yield node


@pytest.fixture(scope="session")
def release(node: Node, folder: Path) -> Release:
    """KubeRay and the chart, installed."""
    release = Release(node, folder / "volumes")
    release.install()
    return release


@pytest.fixture(scope="module")
def team(release: Release) -> Team:
    """A namespace for the tests of one file, with credentials for MLflow."""
    return release.team(f"team-{secrets.token_hex(2)}")


@pytest.fixture(scope="session")
def faults() -> Iterator[Faults]:
    """What faults cost; printed and kept at the end."""
    faults = Faults()
    yield faults
    faults.write(FAULTS)
    print(f"\n{faults.table()}\n(kept in {FAULTS})")  # noqa: T201
