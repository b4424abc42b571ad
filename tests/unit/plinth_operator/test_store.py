"""What the store keeps of what the watches say, and whom it wakes."""

from typing import Any

import pytest

from makers import pretrain_document
from plinth_operator.facts import ClaimFacts, ObjectFacts, PodFacts, RayClusterFacts, RayJobFacts, RunFacts
from plinth_operator.store import Key, Store

UID = "uid-1"
KEY = Key("PretrainJob", "team-a", "tiny")


def resource(version: int, *, uid: str = UID, name: str = "tiny", namespace: str = "team-a", **spec: Any) -> Any:
    document = pretrain_document(name=name, namespace=namespace, uid=uid, **spec)
    document["metadata"]["resourceVersion"] = str(version)
    return document


def facts(cls: type[ObjectFacts], kind: str, name: str, version: int = 1, **fields: Any) -> Any:
    known = {"namespace": "team-a", "uid": f"uid-of-{name}", "owner_uid": UID, **fields}
    return cls(kind=kind, name=name, resource_version=version, **known)


def ray_job(attempt: int = 1, version: int = 1, **fields: Any) -> RayJobFacts:
    found: RayJobFacts = facts(RayJobFacts, "RayJob", f"tiny-{attempt}", version, attempt=attempt, **fields)
    return found


def cluster(version: int = 1, **fields: Any) -> RayClusterFacts:
    named = {"owner_uid": "", "owner_name": "tiny-1", **fields}
    found: RayClusterFacts = facts(RayClusterFacts, "RayCluster", "tiny-1-x", version, **named)
    return found


def claim(version: int = 1, modes: tuple[str, ...] = ("ReadWriteMany",)) -> ClaimFacts:
    found: ClaimFacts = facts(ClaimFacts, "PersistentVolumeClaim", "plinth", version, owner_uid="", access_modes=modes)
    return found


def store_with(*objects: ObjectFacts) -> Store:
    store = Store()
    store.put_resource(resource(10))
    for one in objects:
        store.put(one)
    return store


@pytest.mark.parametrize(
    ("version", "uid", "news"),
    [
        pytest.param(9, UID, False, id="an older version is ignored"),
        pytest.param(10, UID, False, id="the same version is no news"),
        pytest.param(11, UID, True, id="a newer version is taken"),
        pytest.param(11, "uid-2", True, id="a re-created resource is taken"),
        pytest.param(9, "uid-2", False, id="a late word of its predecessor is ignored"),
    ],
)
def test_a_resource_is_taken_where_it_is_news(version: int, uid: str, news: bool):
    store = store_with()
    assert store.put_resource(resource(version, uid=uid, training={"steps": 99})) == (KEY if news else None)
    assert ('"steps":99' in store.resources[KEY].spec) == news


def test_what_mlflow_said_stays_with_the_resource_and_not_with_its_successor():
    store = store_with()
    store.resources[KEY].run = RunFacts(run_id="r", experiment_id="1")
    store.put_resource(resource(11))
    assert store.observe(KEY).run is not None
    store.put_resource(resource(12, uid="uid-2"))
    assert store.observe(KEY).run is None
    assert store.key_of(UID) is None
    assert store.key_of("uid-2") == KEY


def test_what_is_learned_while_a_newer_version_comes_is_not_lost():
    store = store_with()
    in_hand = store.resources[KEY]
    store.put_resource(resource(11))
    in_hand.run = RunFacts(run_id="r", experiment_id="1")
    assert store.observe(KEY).run is in_hand.run


@pytest.mark.parametrize(
    ("version", "uid", "state"),
    [
        pytest.param(4, "uid-of-tiny-1", "old", id="older facts are ignored"),
        pytest.param(5, "uid-of-tiny-1", "old", id="the same version is ignored"),
        pytest.param(6, "uid-of-tiny-1", "new", id="newer facts are taken"),
        pytest.param(6, "another", "new", id="those of a re-created object are taken"),
        pytest.param(4, "another", "old", id="late ones of its predecessor are ignored"),
    ],
)
def test_facts_of_an_object_are_taken_where_they_are_news(version: int, uid: str, state: str):
    store = store_with(ray_job(version=5, job_status="old"))
    woken = store.put(ray_job(version=version, uid=uid, job_status="new"))
    assert woken == ((KEY,) if state == "new" else ())
    assert [found.job_status for found in store.observe(KEY).ray_jobs] == [state]


def test_children_are_found_by_the_label_of_their_owner():
    pod = facts(PodFacts, "Pod", "p")
    config, policy = facts(ObjectFacts, "ConfigMap", "c"), facts(ObjectFacts, "NetworkPolicy", "n")
    foreign = facts(PodFacts, "Pod", "q", owner_uid="uid-of-another")
    store = store_with(policy, pod, config, ray_job(2), ray_job(1), foreign)
    seen = store.observe(KEY)
    assert seen.children == (config, policy)
    assert seen.pods == (pod,)
    assert [found.attempt for found in seen.ray_jobs] == [1, 2]


def test_children_seen_before_their_owner_are_its_own():
    store = Store()
    assert store.put(ray_job()) == ()
    store.put_resource(resource(10))
    assert len(store.observe(KEY).ray_jobs) == 1


def test_a_cluster_is_found_through_the_rayjob_that_it_is_made_for():
    store = store_with(ray_job())
    assert store.put(cluster()) == (KEY,)
    assert [found.name for found in store.observe(KEY).ray_clusters] == ["tiny-1-x"]
    assert store.put(cluster(2, state="ready")) == (KEY,)
    assert [found.state for found in store.observe(KEY).ray_clusters] == ["ready"]


def test_a_cluster_of_nobody_wakes_nobody():
    store = store_with(ray_job())
    assert store.put(cluster(owner_name="other")) == ()
    assert store.observe(KEY).ray_clusters == ()


def test_what_is_removed_is_not_observed():
    store = store_with(ray_job(), cluster(), facts(PodFacts, "Pod", "p"))
    assert store.remove("Pod", "team-a", "p") == (KEY,)
    assert store.remove("RayCluster", "team-a", "tiny-1-x") == (KEY,)
    assert store.remove("RayJob", "team-a", "tiny-1") == (KEY,)
    seen = store.observe(KEY)
    assert (seen.pods, seen.ray_clusters, seen.ray_jobs) == ((), (), ())
    assert not store.counts()


@pytest.mark.parametrize(
    ("name", "uid"),
    [
        pytest.param("unknown", "", id="an object that is not known"),
        pytest.param("tiny-1", "uid-of-its-predecessor", id="the predecessor of the one that is known"),
    ],
)
def test_removing_something_else_changes_nothing(name: str, uid: str):
    store = store_with(ray_job())
    assert store.remove("RayJob", "team-a", name, uid) == ()
    assert len(store.observe(KEY).ray_jobs) == 1


def test_a_resource_is_removed_by_its_uid():
    store = store_with()
    assert store.remove_resource(KEY, "uid-of-its-predecessor") is None
    assert store.key_of(UID) == KEY
    assert store.remove_resource(KEY, UID) is not None
    assert store.key_of(UID) is None
    assert list(store.jobs()) == []


def test_a_claim_wakes_every_resource_of_its_namespace():
    store = store_with()
    store.put_resource(resource(1, name="other", uid="uid-2"))
    store.put_resource(resource(1, namespace="team-b", uid="uid-3"))
    both = {KEY, Key("PretrainJob", "team-a", "other")}
    assert set(store.put(claim())) == both
    assert store.put(claim(2)) == ()
    assert set(store.put(claim(3, ("ReadWriteOnce",)))) == both
    assert list(store.observe(KEY).claims) == ["plinth"]
    assert not store.observe(Key("PretrainJob", "team-b", "tiny")).claims
    assert set(store.remove("PersistentVolumeClaim", "team-a", "plinth")) == both
    assert not store.observe(KEY).claims


def test_versions_are_those_of_one_kind():
    store = store_with(ray_job(1, 7), claim(3))
    assert store.versions("RayJob") == {("team-a", "tiny-1"): 7}
    assert store.versions("PretrainJob") == {("team-a", "tiny"): 10}


def test_a_cluster_that_outlives_its_ray_job_is_still_found_and_leaves_no_trace():
    store = store_with(ray_job(), cluster())
    store.remove("RayJob", "team-a", "tiny-1")
    assert len(store.observe(KEY).ray_clusters) == 1
    assert store.remove("RayCluster", "team-a", "tiny-1-x") == (KEY,)
    assert store.observe(KEY).ray_clusters == ()


def test_a_cluster_that_is_seen_before_its_ray_job_is_found_through_it():
    store = store_with(cluster())
    assert store.observe(KEY).ray_clusters == ()
    assert store.put(ray_job()) == (KEY,)
    assert len(store.observe(KEY).ray_clusters) == 1


def test_the_labels_of_a_resource_travel_with_it():
    store = Store()
    document = resource(1)
    document["metadata"]["labels"] = {"kueue.x-k8s.io/priority-class": "high"}
    key = store.put_resource(document)
    assert key is not None
    assert store.resources[key].document(key)["metadata"]["labels"] == {"kueue.x-k8s.io/priority-class": "high"}
