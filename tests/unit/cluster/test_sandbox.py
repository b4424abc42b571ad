"""Where a sandbox can be made, and what is left of one."""

import os

from cluster import e2e, sandbox


def test_control_groups_are_removed_from_the_innermost_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "CGROUPS", tmp_path)
    (tmp_path / "memory" / "plinth-sandbox-x" / "kubepods" / "pod1").mkdir(parents=True)
    (tmp_path / "memory" / "other").mkdir()
    (tmp_path / "plinth-sandbox-x" / "kubepods").mkdir(parents=True)
    sandbox.remove_cgroups("plinth-sandbox-x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["memory", "other"]


def test_without_root_the_reason_is_a_sentence(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in (sandbox.why_not() or "")


def test_a_machine_without_a_node_fails_in_ci_and_says_so_elsewhere(monkeypatch, capsys):
    monkeypatch.setattr(e2e, "why_not", lambda: "it needs root")
    monkeypatch.setenv("CI", "true")
    assert e2e.main(["tests/e2e"]) == 1
    monkeypatch.delenv("CI")
    assert e2e.main(["tests/e2e"]) == 0
    assert capsys.readouterr().err.count("left out: it needs root") == 2
