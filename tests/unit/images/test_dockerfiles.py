"""What the Dockerfiles promise to a cluster, read from their text; that two of them build is the e2e tests' to show.

Nobody has built that with vLLM.
"""

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest

from plinth_operator.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
FILES = {
    "operator": "operator/Dockerfile",
    "workloads": "workloads/Dockerfile",
    "vllm": "workloads/Dockerfile.vllm",
}
IMAGES = tuple(FILES)
EXTRAS = {"operator": "operator", "workloads": "workloads", "vllm": "serve-vllm"}
PUBLIC_BASE = "docker.io/library/python:3.11-slim-bookworm"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(file):
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split(" ")[0].split("==") for line in lines if "==" in line)


PINS, VLLM_PINS = pins("constraints.txt"), pins("constraints-vllm.txt")


def instructions(name):
    """Of a Dockerfile, in order: the instruction and the rest of its line, continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / FILES[name]).read_text()).replace("\\\n", "")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def arguments(name):
    return dict(text.split("=", 1) for word, text in instructions(name) if word == "ARG" and "=" in text)


def last(name, word):
    return [text for found, text in instructions(name) if found == word][-1]


@pytest.mark.parametrize("name", IMAGES)
def test_every_stage_is_built_on_the_base_that_one_may_choose(name):
    assert instructions(name)[0] == ("ARG", f"BASE_IMAGE={PUBLIC_BASE}")
    stages = [text for word, text in instructions(name) if word == "FROM"]
    assert stages == ["${BASE_IMAGE} AS build", "${BASE_IMAGE}"]


@pytest.mark.parametrize("name", IMAGES)
def test_the_user_is_a_number_that_is_not_root_with_the_group_of_openshift(name):
    assert last(name, "USER") == "1000:0"
    assert "useradd --uid 1000 --gid 0" in (ROOT / FILES[name]).read_text()
    # A pod's uid may have no name in /etc/passwd; Ray and getpass take it from here.
    assert re.search(r"\bUSER=plinth\b", last(name, "ENV"))
    assert re.search(r"\bHOME=/home/plinth\b", last(name, "ENV"))


@pytest.mark.parametrize("name", IMAGES)
def test_nothing_comes_from_an_address_a_moving_tag_or_a_builder_of_its_own(name):
    words = {word for word, _ in instructions(name)}
    assert "ADD" not in words
    text = (ROOT / FILES[name]).read_text()
    for unwanted in ("latest", "http://", "https://", "--mount", "<<", "syntax=", "--chmod", "--link"):
        assert unwanted not in text


@pytest.mark.parametrize("name", IMAGES)
def test_labels_name_the_image_its_version_and_its_licence(name):
    labels = dict(re.findall(r'([\w.]+)="([^"]*)"', last(name, "LABEL")))
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}title"] == f"plinth-{name}"
    assert labels[f"{prefix}version"] == "${VERSION}"
    assert labels[f"{prefix}licenses"] == PROJECT["license"]
    assert labels[f"{prefix}source"] == "${SOURCE_URL}"
    assert arguments(name)["VERSION"] == PROJECT["version"]


@pytest.mark.parametrize(
    ("name", "pinned", "packages"),
    [("workloads", PINS, ("ray", "torch", "mlflow")), ("vllm", VLLM_PINS, ("ray", "torch", "vllm"))],
)
def test_the_images_label_the_versions_that_are_installed(name, pinned, packages):
    labels = dict(re.findall(r'([\w.]+)="([^"]*)"', last(name, "LABEL")))
    for package in packages:
        argument = f"{package.upper()}_VERSION"
        assert labels[f"dev.plinth.{package}.version"] == f"${{{argument}}}"
        assert arguments(name)[argument] == pinned[package]


@pytest.mark.parametrize("name", ["workloads", "vllm"])
def test_the_operator_expects_the_ray_that_the_workloads_have(name):
    assert Settings().ray_version == arguments(name)["RAY_VERSION"]


def test_the_vllm_is_one_that_runs_no_code_of_a_model_and_the_one_that_its_ray_asks_for():
    # CVE-2026-22807 and CVE-2026-27893: before 0.18 code of a model ran with trust_remote_code off.
    assert tuple(map(int, VLLM_PINS["vllm"].split("."))) >= (0, 18, 0)
    (asked,) = (need for need in requires("ray") or () if need.startswith("vllm["))
    assert f"=={VLLM_PINS['vllm']};" in asked
    assert VLLM_PINS["ray"] == PINS["ray"]


def test_the_constraints_of_vllm_are_versions_only():
    lines = (ROOT / "constraints-vllm.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[\w.+!]+", line)] == []


@pytest.mark.parametrize("name", IMAGES)
def test_dependencies_are_the_tested_ones_and_installed_before_the_code_comes(name):
    steps = [f"{word} {text}" for word, text in instructions(name)]
    (installed,) = (i for i, step in enumerate(steps) if "requirements.txt" in step and " install " in step)
    constraints = "constraints-vllm" if name == "vllm" else "constraints"
    assert re.search(rf"-c \S*{constraints}\.txt", steps[installed])
    assert f"['{EXTRAS[name]}']" in " ".join(steps)
    code = [i for i, step in enumerate(steps) if step.startswith("COPY") and "wheels" in step]
    code += [i for i, step in enumerate(steps) if "install" in step and ".whl" in step]
    assert code
    assert all(i > installed for i in code)
    for i, step in enumerate(steps):
        if re.search(r"\bpip\b.* (install|wheel) ", step):
            assert "--no-cache-dir" in step, f"step {i} leaves pip's cache"


@pytest.mark.parametrize("name", ["workloads", "vllm"])
def test_workloads_have_a_compiler_and_what_probes_call(name):
    assert re.search(r"install .*\bgcc g\+\+ libc6-dev wget\b", (ROOT / FILES[name]).read_text())


def test_the_operator_has_no_compiler():
    assert "apt-get" not in (ROOT / FILES["operator"]).read_text()


def test_the_chart_can_run_mlflow_with_passwords_from_the_workloads():
    assert any(re.match(r"mlflow\[auth\]", need) for need in PROJECT["optional-dependencies"]["workloads"])
    assert "flask-wtf" in PINS


def test_the_operator_starts_as_its_module_and_the_workloads_do_nothing_by_themselves():
    assert last("operator", "ENTRYPOINT") == '["python", "-m", "plinth_operator"]'
    assert last("workloads", "CMD") == '["plinth", "--help"]'
    assert "ENTRYPOINT" not in {word for word, _ in instructions("workloads")}
