"""Debian's packages: asked for once, and a sentence where they cannot be installed."""

import os

import pytest

from cluster import packages
from cluster.packages import PACKAGES, PackagesMissing, ensure_packages, missing_packages

APT = """#!/bin/sh
echo "$@" >> "$0.log"
exit ${APT_EXIT:-0}
"""


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """An apt-get that keeps a log of what it was asked and installs nothing."""
    program = tmp_path / "bin" / "apt-get"
    program.parent.mkdir()
    program.write_text(APT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(packages.os, "geteuid", lambda: 0)
    return program.with_name("apt-get.log")


def provide(monkeypatch, tmp_path, *names):
    """Only these packages are there, the others as soon as somebody makes their files."""
    files = {name: str(tmp_path / name) for name in ("buildah", "nftables")}
    monkeypatch.setattr(packages, "PACKAGES", files)
    for name in names:
        (tmp_path / name).touch()
    return files


def test_what_is_missing_is_what_has_no_file(tmp_path):
    for name in ("/usr/bin/buildah", "/usr/sbin/nft"):
        (tmp_path / name.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name.lstrip("/")).touch()
    assert set(missing_packages(root=tmp_path)) == set(PACKAGES) - {"buildah", "nftables"}
    assert missing_packages(("buildah",), tmp_path) == []


def test_a_machine_with_everything_is_not_touched(tmp_path, monkeypatch, apt):
    ensure_packages(provide(monkeypatch, tmp_path, "buildah", "nftables"))
    assert not apt.exists()


def test_only_what_is_missing_is_installed(tmp_path, monkeypatch, apt):
    files = provide(monkeypatch, tmp_path, "buildah")
    with pytest.raises(PackagesMissing, match=f"nftables was installed, but {files['nftables']} is not there"):
        ensure_packages(files)
    assert apt.read_text().splitlines() == [
        "--quiet update",
        "--quiet install --yes --no-install-recommends nftables",
    ]


def test_a_failed_installation_says_which_command_it_was(tmp_path, monkeypatch, apt):
    monkeypatch.setenv("APT_EXIT", "100")
    with pytest.raises(PackagesMissing, match="apt-get --quiet update failed"):
        ensure_packages(provide(monkeypatch, tmp_path))


def test_another_user_than_root_is_told_the_command(tmp_path, monkeypatch, apt):
    monkeypatch.setattr(packages.os, "geteuid", lambda: 1000)
    with pytest.raises(PackagesMissing, match=r"nftables; run `sudo .* -m cluster\.packages buildah nftables`"):
        ensure_packages(provide(monkeypatch, tmp_path))
    assert not apt.exists()


def test_another_system_is_told_that_they_are_debians(tmp_path, monkeypatch):
    files = provide(monkeypatch, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackagesMissing, match="packages of Debian, and apt-get is not here"):
        ensure_packages(files)
