"""What is downloaded once is had by all, whatever it is called; what was cut off is not believed."""

import errno
import os
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from plinth_workloads.errors import UserError
from plinth_workloads.models.model_cache import Download, ModelCache
from plinth_workloads.models.model_load import ModelLoad, following

BYTES = b"w" * 4000


class Place:
    """Somewhere that files are downloaded from; counts how often."""

    def __init__(self, source, **files):
        self.source, self.count = source, 0
        self.files = {name.replace("_", "."): content for name, content in files.items()}

    def download(self, *, sizes=True, name="models:/m/1"):
        told = {path: len(content) for path, content in self.files.items()} if sizes else {}
        return Download(name, self.source, self.into, told)

    def into(self, folder):
        self.count += 1
        for path, content in self.files.items():
            (folder / path).write_bytes(content)
        return folder


def inodes(folder):
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_what_is_here_is_known_to_other_processes(tmp_path):
    place = Place("a", config_json=b"{}", note_txt=BYTES)
    folder = ModelCache(tmp_path).add("models:/m/1", place.download())
    assert ModelCache(tmp_path).known("models:/m/1") == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == place.files
    assert ModelCache(tmp_path).known("models:/m/2") is None


def test_another_name_of_one_source_is_not_downloaded_again(tmp_path):
    cache, place = ModelCache(tmp_path), Place("a", note_txt=BYTES)
    assert cache.add("models:/m/1", place.download()) == cache.add("models:/renamed/1", place.download())
    assert place.count == 1


def test_versions_share_the_files_that_are_equal(tmp_path):
    cache = ModelCache(tmp_path)
    first = cache.add("m/1", Place("a", weights_txt=BYTES, config_json=b"1").download())
    second = cache.add("m/2", Place("b", weights_txt=BYTES, config_json=b"2").download())
    assert inodes(first)["weights.txt"] == inodes(second)["weights.txt"]
    assert inodes(first)["config.json"] != inodes(second)["config.json"]
    assert first != second


def test_one_of_many_at_once_downloads(tmp_path):
    place = Place("a", note_txt=BYTES)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda number: ModelCache(tmp_path).add(f"m/{number}", place.download()), range(4)))
    assert (len(folders), place.count) == (1, 1)


def test_a_download_that_is_cut_off_leaves_nothing_that_is_believed(tmp_path):
    cache, place = ModelCache(tmp_path), Place("a", one_txt=BYTES, two_txt=BYTES)
    whole = dict(place.files)

    def killed(folder):
        (folder / "one.txt").write_bytes(BYTES)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.add("m/1", Download("m/1", "a", killed))
    # As a process that was killed leaves it, which tidies nothing up.
    (tmp_path / "incoming" / "half").mkdir()
    (tmp_path / "contents" / "half").mkdir()
    assert cache.known("m/1") is None
    assert {path.name for path in cache.add("m/1", place.download()).iterdir()} == set(whole)
    assert not list((tmp_path / "incoming").iterdir())
    assert len(list((tmp_path / "contents").iterdir())) == 1


def test_another_process_downloads_undisturbed_while_room_is_made(tmp_path):
    cache = ModelCache(tmp_path)

    def into(folder):
        cache.add("m/2", Place("b", note_txt=b"2").download())
        (folder / "note.txt").write_bytes(b"1")
        return folder

    assert (cache.add("m/1", Download("m/1", "a", into)) / "note.txt").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"note.txt": 5000}, "models:/m/1: note.txt has come with 4,000 of 5,000 bytes"),
        ({"note.txt": 4000, "more.txt": 1}, "models:/m/1: more.txt has not come"),
    ],
)
def test_what_comes_short_is_refused_with_the_file(tmp_path, sizes, sentence):
    cache, place = ModelCache(tmp_path), Place("a", note_txt=BYTES)
    with pytest.raises(UserError, match=sentence) as refused:
        cache.add("m/1", Download("models:/m/1", "a", place.into, sizes))
    assert refused.value.reason == "ModelLoadFailed"
    assert cache.known("m/1") is None


def test_weights_that_come_damaged_are_refused_with_the_file(tmp_path):
    save_file({"w": torch.zeros(100)}, tmp_path / "whole")
    place = Place("a", model_safetensors=(tmp_path / "whole").read_bytes()[:-50])
    with pytest.raises(UserError, match=r"model.safetensors has \d+ bytes, and its header says \d+"):
        ModelCache(tmp_path / "cache").add("m/1", place.download(sizes=False))


def test_shared_files_cannot_be_written_to(tmp_path):
    folder = ModelCache(tmp_path).add("m/1", Place("a", note_txt=BYTES).download())
    assert (folder / "note.txt").stat().st_mode & 0o222 == 0


def used_within_a_load(cache, name, place):
    """As a service has it, which lets go of files once they are on the device."""
    with following(ModelLoad()):
        return cache.add(name, place.download(name=name))


def test_what_was_used_longest_ago_goes_when_the_bound_is_reached(tmp_path):
    cache = ModelCache(tmp_path, max_bytes=9000)
    for name in ("m/1", "m/2"):
        used_within_a_load(cache, name, Place(name, weights_txt=BYTES + name.encode()))
    for age, name in enumerate(("m/2", "m/1")):
        with following(ModelLoad()):
            content = cache.known(name).name
        os.utime(tmp_path / "manifests" / f"{content}.json", (age, age))
    used_within_a_load(cache, "m/3", Place("m/3", weights_txt=BYTES + b"3"))
    with following(ModelLoad()):
        assert [cache.known(f"m/{number}") is not None for number in (1, 2, 3)] == [True, False, True]
    assert sum(path.stat().st_size for path in (tmp_path / "files").iterdir()) < 9000


def test_what_a_model_that_goes_shares_with_another_stays(tmp_path):
    cache = ModelCache(tmp_path, max_bytes=9000)
    used_within_a_load(cache, "m/1", Place("a", weights_txt=BYTES, config_json=b"1" * 10))
    kept = used_within_a_load(cache, "m/2", Place("b", weights_txt=BYTES, config_json=b"2" * 10))
    used_within_a_load(cache, "m/3", Place("c", weights_txt=b"3" * 4985))
    assert (kept / "weights.txt").read_bytes() == BYTES


def test_what_is_in_use_is_never_removed_and_the_numbers_are_told(tmp_path):
    cache, place = ModelCache(tmp_path, max_bytes=5000), Place("b", weights_txt=BYTES + b"2")
    with following(ModelLoad()):
        kept = cache.add("m/1", Place("a", weights_txt=BYTES).download())
        with pytest.raises(UserError, match=r"m/2 needs 3.9 KiB .* 3.9 KiB are models in use, of 4.9 KiB that") as no:
            cache.add("m/2", place.download(name="m/2"))
        assert kept.exists()
    assert (no.value.reason, place.count) == ("ModelLoadFailed", 0)
    assert used_within_a_load(cache, "m/2", place).exists()
    assert not kept.exists()


def test_without_a_load_files_stay_as_long_as_the_process(tmp_path):
    cache = ModelCache(tmp_path, max_bytes=5000)
    cache.add("m/1", Place("a", weights_txt=BYTES).download())
    with pytest.raises(UserError, match="models in use"):
        cache.add("m/2", Place("b", weights_txt=BYTES + b"2").download())


def test_a_disk_that_is_too_small_is_told_before_anything_is_downloaded(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**32, 0, 2**30))
    place = Place("a", note_txt=BYTES)
    wanted = Download("models:/m/1", "a", place.into, {"note.txt": 3 * 2**30})
    with pytest.raises(
        UserError, match=r"models:/m/1 needs 3.0 GiB in the model cache .*: 1.0 GiB of the disk are free"
    ):
        ModelCache(tmp_path).add("m/1", wanted)
    assert place.count == 0


def test_a_disk_that_fills_up_meanwhile_is_told_as_that(tmp_path):
    def into(folder):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserError("ModelNotFound", f"cannot be downloaded: {error}") from error

    with pytest.raises(
        UserError, match=r"models:/m/1 does not fit in the model cache .* GiB of the disk are free"
    ) as no:
        ModelCache(tmp_path).add("m/1", Download("models:/m/1", "a", into))
    assert no.value.reason == "ModelLoadFailed"


def test_the_bytes_that_have_come_are_told(tmp_path):
    load, told = ModelLoad(), []

    def into(folder):
        (folder / "note.txt").write_bytes(BYTES)
        while load.step is None or not load.step.done_bytes:
            pass
        told.append(load.step)
        return folder

    with following(load):
        ModelCache(tmp_path).add("m/1", Download("m/1", "a", into, {"note.txt": len(BYTES)}))
    assert (told[0].phase, told[0].done_bytes, told[0].total_bytes) == ("fetching", 4000, 4000)
