"""What is made again and what is not; that images really are made is the e2e tests' to show."""

import fcntl

import pytest

from cluster import images
from cluster.image_builds import machine_options
from cluster.image_store import ImageStore
from cluster.images import ensure_images, image, images_lock, is_held, make_image, missing_images, node_folder


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = ImageStore(node_folder() / "containerd")
    store.root.mkdir(parents=True)
    return store


class Recorder:
    """Stands in for buildah and for the running containerd: what they were asked, in order."""

    def __init__(self, store):
        self.asked = []
        self._store = store

    def build(self, recipe):
        self.asked.append(("build", recipe.reference))

    def push(self, reference, layout):
        self.asked.append(("push", reference, sorted(path.name for path in layout.rglob("*") if path.is_file())))

    def add(self, reference, layout):
        self.asked.append(("add", reference))
        self._store.write_down({**self._store.images(), reference: {"sha256:b": 2}})

    def remove(self, references):
        self.asked.append(("remove", references))

    def remove_older(self, recipe):
        self.asked.append(("remove older builds", recipe.reference))


def test_what_is_there_is_not_made_again_and_takes_no_lock(store):
    store.write_down({image("pause"): {}, image("kuberay"): {}})
    with images_lock().open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert ensure_images(("pause", "kuberay")) == store.root


def test_an_image_of_another_checkout_is_missing(store):
    store.write_down({image("pause"): {}, "plinth.test/operator:0123456789abcdef": {}})
    assert missing_images(("pause", "operator", "workloads"), store) == ["operator", "workloads"]


def test_only_what_is_missing_is_made_under_the_lock(store, monkeypatch):
    store.write_down({image("pause"): {}})
    made = []
    monkeypatch.setattr(images, "make_images", lambda names, _: made.append((names, is_held(images_lock()))))
    ensure_images(("pause", "kuberay"))
    assert made == [(["kuberay"], True)]
    assert not is_held(images_lock())


def test_layers_that_are_there_are_not_written_and_the_older_image_goes_last(store):
    older, other = "plinth.test/operator:0123456789abcdef", "plinth.test/workloads:0123456789abcdef"
    store.write_down({older: {"sha256:a": 1}, other: {"sha256:c": 3}})
    recorder = Recorder(store)
    make_image("operator", store, recorder, recorder)
    made = image("operator")
    assert recorder.asked == [
        ("build", made),
        ("push", made, ["a", "c"]),
        ("add", made),
        ("remove", [older]),
        ("remove older builds", made),
    ]
    assert [path.name for path in node_folder().iterdir()] == ["containerd"]


def test_a_removed_image_is_forgotten_before_its_layers_go(store, monkeypatch):
    store.write_down({"plinth.test/a:1": {"sha256:a": 1}, "plinth.test/b:1": {"sha256:b": 2}})
    running = images.RunningStore(store, store.root / "socket")
    known = []
    monkeypatch.setattr(running, "_do", lambda *arguments: known.append((arguments, store.layers())))
    running.remove(["plinth.test/a:1"])
    assert known == [(("images", "rm", "--sync", "plinth.test/a:1"), {"sha256:b": 2})]


def test_this_machines_package_index_reaches_a_build_as_an_argument_and_a_mount():
    with_index = machine_options({"PIP_INDEX_URL": "https://index.example/simple"})
    assert with_index[-2:] == ["--build-arg", "PIP_INDEX_URL=https://index.example/simple"]
    without = machine_options({"PIP_INDEX_URL": ""})
    assert "--build-arg" not in without
    assert all(mount.endswith(":ro") for mount in without if mount != "--volume")
