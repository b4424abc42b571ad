"""Kubeconfig files with one cluster, one user and a bearer token."""

from pathlib import Path

import yaml


def write_kubeconfig(
    path: Path, server: str, token: str, *, certificate: Path | None = None, namespace: str = "default"
) -> Path:
    """Write one that only the owner can read; without a certificate the server is a plain http address."""
    cluster = {"server": server, **({"certificate-authority": str(certificate)} if certificate else {})}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "plinth-test", "cluster": cluster}],
        "users": [{"name": "plinth-test", "user": {"token": token}}],
        "contexts": [
            {
                "name": "plinth-test",
                "context": {"cluster": "plinth-test", "user": "plinth-test", "namespace": namespace},
            }
        ],
        "current-context": "plinth-test",
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
