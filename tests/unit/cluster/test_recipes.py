"""References of images: another one with everything that goes in, and with nothing else."""

import shutil

import pytest

from cluster import images, recipes
from cluster.build import COMPONENTS
from cluster.recipes import DISTRIBUTION, NAMES, ROOT, SOURCES, base, distribution, recipe, source_files


@pytest.fixture
def checkout(tmp_path):
    """A small one: one file a package, and what lies beside them."""
    for name in (*DISTRIBUTION, ".dockerignore", "operator/Dockerfile", "workloads/Dockerfile"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for folder in SOURCES:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").write_text('"""A package."""\n')
    return tmp_path


def references(checkout):
    return [distribution(name, checkout).reference for name in ("operator", "workloads")]


def test_every_image_has_a_reference_of_its_own_that_a_second_look_finds_again():
    found = {name: recipe(name).reference for name in NAMES}
    assert set(found) == {"pause", "kuberay", "kueue", "operator", "workloads"}
    assert {name: recipe(name).reference for name in NAMES} == found
    for name, reference in found.items():
        assert reference.startswith(f"plinth.test/{name}:")
        assert len(reference.rpartition(":")[2]) == 16


@pytest.mark.parametrize("name", [".dockerignore", *DISTRIBUTION, *(f"{folder}/__init__.py" for folder in SOURCES)])
def test_a_change_of_what_goes_in_gives_both_images_another_reference(checkout, name):
    before = references(checkout)
    (checkout / name).write_text((checkout / name).read_text() + "# changed\n")
    assert not set(references(checkout)) & set(before)


@pytest.mark.parametrize("name", [f"{folder}/new/module.py" for folder in SOURCES])
def test_a_new_file_of_a_package_gives_both_images_another_reference(checkout, name):
    before = references(checkout)
    (checkout / name).parent.mkdir()
    (checkout / name).touch()
    assert not set(references(checkout)) & set(before)


def test_a_renamed_file_gives_another_reference(checkout):
    before = references(checkout)
    package = checkout / SOURCES[0]
    (package / "__init__.py").rename(package / "other.py")
    assert not set(references(checkout)) & set(before)


def test_a_dockerfile_counts_for_its_own_image_only(checkout):
    before = references(checkout)
    (checkout / "operator" / "Dockerfile").write_text("FROM scratch\n")
    after = references(checkout)
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_another_base_gives_both_images_another_reference(checkout, monkeypatch):
    before = [base().reference, *references(checkout)]
    monkeypatch.setattr(recipes, "BASE_PACKAGES", ("python3",))
    assert not {base().reference, *references(checkout)} & set(before)


@pytest.mark.parametrize("name", ["README.txt", "operator/plinth_api/__pycache__/base.pyc", "tests/test.py"])
def test_what_goes_into_no_image_changes_no_reference(checkout, name):
    before = references(checkout)
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).write_text("anything")
    assert references(checkout) == before


def test_a_controller_follows_its_component(monkeypatch):
    before = recipe("kuberay").reference, recipe("kueue").reference
    changed = [component for component in COMPONENTS if component.name != "kuberay"]
    (kuberay,) = (component for component in COMPONENTS if component.name == "kuberay")
    changed.append(type(kuberay)("kuberay", kuberay.binaries, link_flags="-X other", copies=kuberay.copies))
    monkeypatch.setattr(recipes, "COMPONENTS", tuple(changed))
    assert recipe("kuberay").reference != before[0]
    assert recipe("kueue").reference == before[1]


def test_the_hash_and_the_context_of_a_build_have_the_same_files():
    """The list of `.dockerignore` is what an image sees: a folder missing here would not change its reference."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert set(allowed) == {*DISTRIBUTION, *SOURCES}
    assert {path.suffix for path in source_files()} >= {".py"}


def test_sources_that_change_while_a_process_runs_do_not_change_its_images(checkout, monkeypatch):
    monkeypatch.setattr(images, "recipe", lambda name: distribution(name, checkout))
    images.first_recipe.cache_clear()
    try:
        before = images.image("operator")
        (checkout / SOURCES[0] / "new.py").touch()
        assert images.image("operator") == before
        assert distribution("operator", checkout).reference != before
    finally:
        images.first_recipe.cache_clear()
