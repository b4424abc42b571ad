"""Fixtures of the tests that need a Kubernetes; named here and not in each file, so that a session has one of them."""

from cluster.fixtures import control_plane, namespace

__all__ = ["control_plane", "namespace"]
