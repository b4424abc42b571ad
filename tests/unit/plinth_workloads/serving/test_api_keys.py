"""API keys in a folder, as Kubernetes mounts a Secret."""

import pytest

from plinth_workloads.serving.api_keys import ApiKeys


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def folder(tmp_path):
    """Two keys in the links that the kubelet makes."""
    hidden = tmp_path / "..2026_11_22"
    hidden.mkdir()
    (tmp_path / "..data").symlink_to(hidden)
    for name, key in {"alice": b"sk-alice\n", "bob": b"sk-b\xc3\xb6b", "empty": b"\n"}.items():
        (hidden / name).write_bytes(key)
        (tmp_path / name).symlink_to(f"..data/{name}")
    return tmp_path


@pytest.mark.parametrize("header", ["Bearer sk-alice", "bearer  sk-alice ", "Bearer sk-böb"])
def test_each_of_the_keys_opens(folder, header):
    assert ApiKeys(folder).allow(header)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer sk-alic", "Bearer sk-alice2", "Basic sk-alice", "sk-alice", "Bearer \n"]
)
def test_nothing_else_does(folder, header):
    assert not ApiKeys(folder).allow(header)


def test_keys_that_are_added_and_removed_are_noticed(folder, clock):
    keys = ApiKeys(folder, clock=clock)
    assert len(keys) == 2
    (folder / "carol").write_text("sk-carol")
    (folder / "alice").unlink()
    assert keys.allow("Bearer sk-alice")
    clock.now = 5.0
    assert not keys.allow("Bearer sk-alice")
    assert keys.allow("Bearer sk-carol")


def test_without_a_folder_nobody_is_let_in_until_there_is_one(tmp_path, clock):
    keys = ApiKeys(tmp_path / "later", clock=clock)
    assert (len(keys), keys.allow("Bearer "), keys.allow("")) == (0, False, False)
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "key").write_text("sk")
    clock.now = 5.0
    assert keys.allow("Bearer sk")
