"""From a URI to a folder: the place is asked once for what stays, and the cache does where the hub is away."""

from types import SimpleNamespace

import huggingface_hub
import pytest

from plinth_workloads import tracking_files
from plinth_workloads.errors import UserError
from plinth_workloads.models.fetch import fetch_model
from plinth_workloads.models.model_load import ModelLoad, following


class Mlflow:
    """MLflow with versions 1 and 2 of model a, of the same bytes; 1 has the name renamed too."""

    def __init__(self, monkeypatch):
        self.downloads, self.is_away = [], False
        monkeypatch.setattr(tracking_files, "remote_files", self.remote_files)
        monkeypatch.setattr(tracking_files, "download", self.download)

    def remote_files(self, tracking_uri, uri):
        if self.is_away:
            raise UserError("TrackingUnavailable", "MLflow is away")
        source = {"models:/renamed/1": "models:/a/1"}.get(uri, uri)
        return tracking_files.RemoteFiles(source, {"weights.txt": 1000})

    def download(self, tracking_uri, uri, folder):
        self.downloads.append(uri)
        # MLflow puts what a run has into a folder of the artifact's name.
        (folder / "model").mkdir()
        (folder / "model" / "weights.txt").write_text("w" * 1000)
        return folder / "model"


def fetched(uri, folder):
    return fetch_model(uri, tracking_uri="http://mlflow", cache_dir=folder)


def test_versions_share_files_and_other_names_are_not_downloaded(tmp_path, monkeypatch):
    mlflow = Mlflow(monkeypatch)
    uris = ("models:/a/1", "models:/a/1", "models:/renamed/1", "models:/a/2")
    assert len({(fetched(uri, tmp_path) / "weights.txt").stat().st_ino for uri in uris}) == 1
    assert mlflow.downloads == ["models:/a/1", "models:/a/2"]


def test_mlflow_may_be_away_once_a_version_is_here(tmp_path, monkeypatch):
    mlflow = Mlflow(monkeypatch)
    folder = fetched("models:/a/1", tmp_path)
    mlflow.is_away = True
    assert fetched("models:/a/1", tmp_path) == folder
    with pytest.raises(UserError, match="MLflow is away"):
        fetched("models:/renamed/1", tmp_path)


def test_versions_of_another_mlflow_are_others(tmp_path, monkeypatch):
    mlflow = Mlflow(monkeypatch)
    for server in ("http://one", "http://two"):
        fetch_model("models:/a/1", tracking_uri=server, cache_dir=tmp_path)
    assert len(mlflow.downloads) == 2


def test_the_bound_of_the_cache_is_that_of_the_load(tmp_path, monkeypatch):
    Mlflow(monkeypatch)
    with following(ModelLoad(max_cache_bytes=500)), pytest.raises(UserError, match="of 500 bytes that it may hold"):
        fetched("models:/a/1", tmp_path)


class Hub:
    """The hub's client: a model at commit c1, until it is away."""

    def __init__(self, monkeypatch):
        self.is_away, self.commit, self.downloads = False, "c1", []
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def model_info(self, model, *, revision, files_metadata):
        if self.is_away:
            raise ConnectionError("no route")
        sizes = {"config.json": 2, "pytorch_model.bin": 10**15, "merges.txt": None}
        return SimpleNamespace(
            sha=self.commit, siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
        )

    def download(self, model, *, revision, local_dir, allow_patterns):
        self.downloads.append(revision)
        (local_dir / ".cache" / "huggingface").mkdir(parents=True)
        (local_dir / ".cache" / "huggingface" / "note.lock").touch()
        (local_dir / "config.json").write_text("{}")
        return str(local_dir)


def test_a_model_of_the_hub_is_downloaded_once_a_commit(tmp_path, monkeypatch):
    hub = Hub(monkeypatch)

    def files():
        return {path.name for path in fetch_model("hf://org/m", tracking_uri="", cache_dir=tmp_path).iterdir()}

    assert files() == files() == {"config.json"}
    hub.is_away = True
    assert files() == {"config.json"}
    hub.is_away, hub.commit = False, "c2"
    assert files() == {"config.json"}
    assert hub.downloads == ["c1", "c2"]


def test_a_hub_that_is_away_is_told_where_nothing_is_here(tmp_path, monkeypatch):
    Hub(monkeypatch).is_away = True
    with pytest.raises(UserError, match="hf://org/m cannot be loaded from the hub: no route"):
        fetch_model("hf://org/m", tracking_uri="", cache_dir=tmp_path)
