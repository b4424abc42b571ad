"""Which browser tests of pages get: the machine's own, or Debian's, or a sentence."""

import pytest

import browser
from browser import ensure_browser
from cluster import packages
from cluster.packages import PackagesMissing


def program(folder, name):
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine that has nothing but what the test puts into this folder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"])
def test_a_browser_that_is_there_is_taken(machine, name):
    path = program(machine, name)
    assert ensure_browser() == path


def test_debians_is_installed_where_there_is_none(machine, monkeypatch):
    wanted = []
    monkeypatch.setattr(browser, "ensure_packages", lambda names: wanted.extend(names))
    assert (ensure_browser(), wanted) == ("/usr/bin/chromium", ["chromium"])


@pytest.mark.parametrize(
    ("programs", "user", "says"),
    [
        pytest.param((), 0, "packages of Debian, and apt-get is not here", id="another system"),
        pytest.param(("apt-get",), 1000, r"run `sudo .* cluster\.packages chromium`", id="another user"),
    ],
)
def test_where_none_can_be_installed_the_sentence_says_what_to_do(machine, monkeypatch, programs, user, says):
    monkeypatch.setattr(packages, "BROWSER", {"chromium": str(machine / "chromium")})
    monkeypatch.setattr(packages.os, "geteuid", lambda: user)
    for name in programs:
        program(machine, name)
    with pytest.raises(PackagesMissing, match=rf"need Chromium or Chrome on the PATH\. .*{says}"):
        ensure_browser()
