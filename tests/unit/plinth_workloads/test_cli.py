import re
import sys
from pathlib import Path

import pytest
import yaml

from commands import write_yaml
from makers import fine_tune_document, pretrain_document, service_document
from plinth_workloads import cli

REPOSITORY = Path(__file__).parents[3]
EXAMPLES = sorted(path for path in (REPOSITORY / "examples").rglob("*.yaml") if "plinth.dev/v1" in path.read_text())
BAD = sorted((REPOSITORY / "tests" / "bad").glob("*.yaml"))


def run_cli(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["plinth", *map(str, arguments)])
    code = cli.main()
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: "/".join(file.parts[-2:]))
def test_every_example_is_valid(monkeypatch, capsys, file):
    code, output = run_cli(monkeypatch, capsys, "validate", file)
    assert code == 0
    assert "is valid" in output


def test_there_are_examples_and_wrong_files():
    assert len(EXAMPLES) >= 3
    assert len(BAD) >= 20


@pytest.mark.parametrize("command", ["validate", "run"])
@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_every_wrong_file_is_explained(monkeypatch, capsys, file, command):
    expected = re.match(r"# expect: (.*)", file.read_text(encoding="utf-8", errors="replace"))[1]
    code, output = run_cli(monkeypatch, capsys, command, file)
    assert code == 2
    assert re.search(expected, output), output
    assert str(file) in output
    assert "Traceback" not in output


def test_a_file_that_is_not_there_is_named(monkeypatch, capsys, tmp_path):
    code, output = run_cli(monkeypatch, capsys, "validate", tmp_path / "none.yaml")
    assert code == 2
    assert output.strip() == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"


def test_every_problem_of_every_file_is_told_at_once(monkeypatch, capsys, tmp_path):
    first = write_yaml(tmp_path / "a.yaml", pretrain_document(training={"steps": -3, "seed": "x"}))
    second = write_yaml(tmp_path / "b.yaml", service_document(), fine_tune_document(stpes=1))
    code, output = run_cli(monkeypatch, capsys, "validate", first, second)
    assert code == 2
    lines = output.strip().splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [str(first), "spec.training.steps"],
        [str(first), "spec.training.seed"],
        [f"{second} (document 2)", "spec.stpes"],
    ]


def test_serve_takes_services_only(monkeypatch, capsys, tmp_path):
    file = write_yaml(tmp_path / "a.yaml", pretrain_document())
    code, output = run_cli(monkeypatch, capsys, "serve", file)
    assert code == 2
    assert output.strip() == f"{file}: is a PretrainJob; run it with plinth run"


def test_the_crds_are_written(monkeypatch, capsys, tmp_path):
    code, _ = run_cli(monkeypatch, capsys, "export-crds", tmp_path / "crds")
    assert code == 0
    kinds = {yaml.safe_load(file.read_text())["spec"]["names"]["kind"] for file in (tmp_path / "crds").iterdir()}
    assert kinds == {"PretrainJob", "FineTuneJob", "ModelService"}


def test_a_password_in_the_address_of_mlflow_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@mlflow.example.com")
    file = write_yaml(tmp_path / "a.yaml", pretrain_document())
    code, output = run_cli(monkeypatch, capsys, "run", file, "--home", tmp_path)
    assert code == 2
    assert "MLFLOW_TRACKING_URI must not hold a password" in output
    assert "hunter2" not in output


def test_an_unknown_command_is_bad_input(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_cli(monkeypatch, capsys, "trian")
    assert stop.value.code == 2
