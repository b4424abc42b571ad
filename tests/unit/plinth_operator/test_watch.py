"""What lists and events make of the store, with an API server that tells what the test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

from makers import pretrain_document
from plinth_operator.facts import Manifest, RunFacts
from plinth_operator.kube import Kube
from plinth_operator.queue import WorkQueue
from plinth_operator.store import Key, Resource, Store
from plinth_operator.tracking import Tracking
from plinth_operator.watch import Watcher

KEY = Key("PretrainJob", "team-a", "tiny")


def job(version: int, uid: str = "uid-1") -> Manifest:
    document: Manifest = pretrain_document(namespace="team-a", uid=uid)
    document["metadata"]["resourceVersion"] = str(version)
    return document


class Stage:
    """A watcher whose lists give `listed`; `meanwhile` happens between the server's answer and its reading."""

    def __init__(self) -> None:
        self.store = Store()
        self.queue: WorkQueue[Key] = WorkQueue(lambda: 0.0)
        self.listed: list[Manifest] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.abandoned: list[str] = []
        self.watcher = Watcher(
            cast(Kube, self), self.store, self.queue, cast(Tracking, self), namespace="", resync_seconds=300.0
        )

    async def serves(self, kind: str) -> bool:
        return True

    async def list(self, kind: str, namespace: str = "", *, label_selector: str = "") -> AsyncIterator[Manifest]:
        answer = [manifest for manifest in self.listed if manifest["kind"] == kind]
        if kind == KEY.kind:
            self.meanwhile()
        for manifest in answer:
            yield manifest

    def abandon(self, key: Key, resource: Resource) -> None:
        self.abandoned.append(resource.uid)

    def take(self, change: str, manifest: Manifest) -> None:
        self.watcher.take(KEY.kind, change, manifest)

    def list_all(self) -> None:
        asyncio.run(self.watcher.list_all())


def test_what_no_list_has_any_more_is_gone():
    stage = Stage()
    stage.take("ADDED", job(1))
    stage.list_all()
    assert stage.store.resources == {}
    assert stage.abandoned == ["uid-1"]


def test_what_is_deleted_while_a_list_is_read_does_not_come_back():
    stage = Stage()
    stage.listed = [job(1)]
    stage.meanwhile = lambda: stage.take("DELETED", job(2))
    stage.list_all()
    assert stage.store.resources == {}
    stage.meanwhile = lambda: None
    stage.listed = [job(3, uid="uid-2")]
    stage.list_all()
    assert stage.store.resources[KEY].uid == "uid-2"


def test_what_is_made_again_while_a_list_is_read_stays():
    stage = Stage()
    stage.take("ADDED", job(1))
    stage.meanwhile = lambda: stage.take("ADDED", job(3, uid="uid-2"))
    stage.list_all()
    assert stage.store.resources[KEY].uid == "uid-2"


def test_a_name_that_changes_hands_ends_the_run_of_the_one_before_in_whatever_order_it_is_told():
    stage = Stage()
    stage.take("ADDED", job(1))
    stage.store.resources[KEY].run = RunFacts("r", "1", status="RUNNING")
    stage.take("ADDED", job(3, uid="uid-2"))
    stage.take("DELETED", job(2))
    assert stage.abandoned == ["uid-1"]
    assert stage.store.resources[KEY].uid == "uid-2"
    assert stage.store.resources[KEY].run is None
