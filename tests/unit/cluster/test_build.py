"""What is built, and when: each component by itself, once, and never what is there."""

import os
from pathlib import Path

import pytest

from cluster import build
from cluster.build import COMPONENTS, Assets, Component, ensure_assets

GO = """#!/bin/sh
echo "$@" >> "$0.log"
case "$1" in
  version) echo "go version go1.99.0 linux/amd64";;
  build)
    while [ "$1" != "-o" ]; do shift; done
    folder="$2"; shift 2
    for package in "$@"; do echo "$package" > "$folder$(basename "${package%/v3}")"; done;;
  mod) mkdir -p "$0.module/folder" && touch "$0.module/folder/kinds.yaml" && echo "{\\"Dir\\": \\"$0.module\\"}";;
esac
"""


@pytest.fixture
def go(tmp_path, monkeypatch):
    """A Go that writes its package's name into what it should build, and keeps a log of what it was asked."""
    program = tmp_path / "bin" / "go"
    program.parent.mkdir()
    program.write_text(GO)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return Path(f"{program}.log")


def builds(go):
    return [line for line in go.read_text().splitlines() if line.startswith("build")]


def test_a_binary_is_built_once_and_another_version_in_a_folder_of_its_own(go):
    etcd = next(component for component in COMPONENTS if component.name == "etcd")
    binary = ensure_assets((etcd,)).binary("etcd")
    assert binary.read_text() == "go.etcd.io/etcd/server/v3\n"
    ensure_assets((etcd,))
    assert len(builds(go)) == 1
    other = Component("etcd", etcd.binaries, link_flags="-X other")
    assert other.folder != etcd.folder
    ensure_assets((etcd,))
    assert len(builds(go)) == 1


def test_a_component_that_is_missing_builds_no_other(go):
    etcd, helm = (component for component in COMPONENTS if component.name in ("etcd", "helm"))
    ensure_assets((etcd,))
    assets = ensure_assets((etcd, helm))
    assert assets.binary("helm").read_text() == "helm.sh/helm/v4/cmd/helm\n"
    assert [line.rpartition(" ")[2] for line in builds(go)] == ["go.etcd.io/etcd/server/v3", "helm.sh/helm/v4/cmd/helm"]


def test_crds_are_taken_from_the_module_as_they_are(go):
    component = Component("kueue", copies={"crds": ("sigs.k8s.io/kueue", "folder")})
    assert build.is_missing(component, Assets())
    ensure_assets((component,))
    assert [path.name for path in sorted((component.folder / "crds").iterdir())] == ["kinds.yaml"]


def test_what_a_killed_build_left_goes_with_the_next_one(go):
    left = build.cache_folder() / ".making-1"
    left.mkdir(parents=True)
    ensure_assets(tuple(component for component in COMPONENTS if component.name == "helm"))
    assert not left.exists()


def test_a_binary_that_was_given_is_not_built(go, tmp_path, monkeypatch):
    given = tmp_path / "given"
    given.mkdir()
    (given / "etcd").write_text("theirs")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(given))
    etcd = next(component for component in COMPONENTS if component.name == "etcd")
    assert ensure_assets((etcd,)).binary("etcd") == given / "etcd"
    assert not go.exists()


def test_every_module_is_of_a_component_and_the_other_way_round():
    assert {component.sources for component in COMPONENTS} == set(build.MODULES.iterdir())


def test_components_have_folders_of_their_own_also_where_they_share_a_module():
    assert len({component.folder for component in COMPONENTS}) == len(COMPONENTS)
    assert len({component.sources for component in COMPONENTS}) < len(COMPONENTS)


def test_tags_and_c_are_for_those_that_ask(go):
    assets = ensure_assets((Component("runc", {"runc": "github.com/opencontainers/runc"}, tags="seccomp", cgo=True),))
    assert assets.binary("runc").is_file()
    (line,) = builds(go)
    assert "-tags seccomp " in line
    assert build.go_environment(cgo=True)["CGO_ENABLED"] == "1"
    assert build.go_environment()["CGO_ENABLED"] == "0"
