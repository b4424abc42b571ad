"""What the operator reads of what a replica tells, in the words of the replica itself."""

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web

from plinth_api.service_state import AdapterState, CandidateState, LoadState, ServiceState
from plinth_operator.facts import ApplicationFacts, PodFacts, RayServiceFacts, ReplicaState
from plinth_operator.queue import WorkQueue
from plinth_operator.serving import ServicePoller, replica_state, state_urls
from plinth_operator.settings import Settings
from plinth_operator.store import Key, Store
from serving_processes import free_port

NOW = datetime(2026, 1, 1, tzinfo=UTC)
URI = "models:/team-a.chat/3"


def read(**told):
    return replica_state(json.dumps(ServiceState(name="chat", target_uri=URI, **told).to_wire()).encode(), NOW)


def test_a_version_in_service_is_read_where_no_error_is_told():
    assert read(model_uri=URI, loaded=True) == ReplicaState(URI, URI, "", NOW)


def test_a_replica_that_could_not_load_has_no_version():
    assert read(model_uri=URI, loaded=True, api_keys=0) == ReplicaState(URI, URI, "", NOW, has_no_keys=True)
    assert read(model_uri=URI, loaded=True, api_keys=2) == ReplicaState(URI, URI, "", NOW)
    assert read(load_error="there is no such model") == ReplicaState("", URI, "there is no such model", NOW)


def test_adapters_are_those_that_answer_and_why_the_others_do_not():
    told = (
        AdapterState(name="docs", uri="models:/docs/2", target_uri="models:/docs/3", load_error="it is damaged"),
        AdapterState(name="tests", target_uri="models:/tests/1"),
    )
    found = read(model_uri=URI, loaded=True, adapters=told)
    assert found.adapters == (("docs", "models:/docs/2"),)
    assert found.adapter_errors == (("docs", "it is damaged"),)


def test_what_lies_on_a_claim_is_told_as_its_user_wrote_it():
    at = "file:///mnt/plinth/volumes/models/chat"
    found = read(model_uri=at, load_error=f"{at} is not a folder", adapters=(AdapterState(name="docs", uri=at),))
    told = "pvc://models/chat"
    assert (found.model_uri, found.load_error, found.adapters) == (told, f"{told} is not a folder", (("docs", told),))


def test_what_another_version_of_the_image_tells_besides_is_passed_over():
    told = {**ServiceState(target_uri=URI).to_wire(), "cacheHits": 3}
    assert replica_state(json.dumps(told).encode(), NOW).target_uri == URI


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"modelUri": 1}'])
def test_the_answer_of_something_else_is_refused(body):
    with pytest.raises(ValueError, match="ServiceState"):
        replica_state(body, NOW)


@pytest.mark.parametrize(
    ("load", "told"),
    [
        (None, ""),
        (LoadState(phase="fetching"), "downloading"),
        (LoadState(phase="fetching", done_bytes=2**30, total_bytes=10 * 2**30), "downloading 1.0 GiB of 10.0 GiB"),
        (LoadState(phase="fetching", done_bytes=2**31 - 1, total_bytes=10 * 2**30), "downloading 1.0 GiB of 10.0 GiB"),
        (LoadState(phase="loading", total_bytes=2**30), "loading 1.0 GiB onto the device"),
        (LoadState(phase="loading"), "loading onto the device"),
        (LoadState(phase="warmingUp"), "the engine is warmed up"),
    ],
)
def test_a_loading_is_told_in_tenths_so_that_few_statuses_are_written(load, told):
    assert read(loading=load).loading == told


CHAT = Key("ModelService", "team-a", "chat")
TRIED = {"rollout": {"phase": "Progressing"}}
TO_ZERO = {"scaling": {"minReplicas": 0}}


def pod(name: str, ip: str, **changes: Any) -> PodFacts:
    known = {"role": "worker", "ray_cluster": "new", "ready": True, "ip": ip}
    return PodFacts("Pod", "team-a", name, name, "u1", 1, **{**known, **changes})


def empty_store(status: dict[str, Any] | None = None, spec: dict[str, Any] | None = None) -> Store:
    """A service whose RayService is up."""
    store = Store()
    meta = {"namespace": "team-a", "name": "chat", "uid": "u1", "resourceVersion": "1"}
    store.put_resource({"kind": "ModelService", "metadata": meta, "spec": spec or {}, "status": status or {}})
    store.put(RayServiceFacts("RayService", "team-a", "chat", "r1", "u1", 1, active=ApplicationFacts("new")))
    return store


def make_store(status: dict[str, Any] | None = None, spec: dict[str, Any] | None = None) -> Store:
    """Two workers that answer, of which one is of the cluster before, one that does not yet, one that goes, a head."""
    store = empty_store(status, spec)
    others = (
        pod("a-late", "10.0.0.3", ready=False),
        pod("going", "10.0.0.4", deleting=True),
        pod("head", "10.0.0.5", role="head"),
        pod("without", ""),
    )
    for found in (pod("a", "10.0.0.1", ray_cluster="old"), pod("b", "fd00::2"), *others):
        store.put(found)
    return store


def urls(status: dict[str, Any], spec: dict[str, Any]) -> tuple[list[str], list[str]]:
    found = state_urls(CHAT, spec, status, make_store().observe(CHAT), Settings())
    return found.any_of, sorted(found.each)


AS_CLIENTS = ["http://chat-serve.team-a.svc:8000/-/state"]
READY = ["http://10.0.0.1:8001/-/state", "http://[fd00::2]:8001/-/state"]
OF_THE_CLUSTER = ["http://[fd00::2]:8001/-/state", "http://10.0.0.3:8001/-/state"]


@pytest.mark.parametrize(
    ("status", "spec", "any_of", "each"),
    [
        pytest.param({}, {}, AS_CLIENTS, [], id="as a client does"),
        pytest.param({}, {"scaling": {"minReplicas": 1}}, AS_CLIENTS, [], id="one that keeps a replica"),
        pytest.param(
            {"rollout": {"phase": "Promoted"}}, {"scaling": {"maxReplicas": 4}}, AS_CLIENTS, [], id="promoted"
        ),
        pytest.param(TRIED, {}, AS_CLIENTS, READY, id="each replica while a version is tried"),
        pytest.param({}, TO_ZERO, OF_THE_CLUSTER, [], id="replicas of what scales to zero, which is no request"),
        pytest.param(TRIED, TO_ZERO, OF_THE_CLUSTER, READY, id="both"),
        pytest.param({}, {**TO_ZERO, "engine": "vllm"}, AS_CLIENTS, [], id="vLLM has no port of its own"),
    ],
)
def test_a_replica_is_asked_at_its_own_port_where_one_must_be_met_or_none_be_woken(
    status: dict[str, Any], spec: dict[str, Any], any_of: list[str], each: list[str]
):
    assert urls(status, spec) == (any_of, each)


async def polled(status: dict[str, Any], spec: dict[str, Any] | None = None) -> tuple[Store, list[str], bool]:
    """The store after one round, the paths that were asked for, and whether the service is to be looked at."""
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        candidate = CandidateState(uri=URI, weight=10, loaded=True)
        told = ServiceState(name="chat", replica_id=request.path, model_uri=URI, candidate=candidate)
        return web.json_response(told.to_wire())

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    store, queue = make_store(status, spec), WorkQueue[Key](time.monotonic)
    settings = Settings(service_state_url=url + "/{namespace}/{service}", replica_state_url=url + "/{ip}")
    poller = ServicePoller(store, queue, settings=settings, now=lambda: NOW)
    polling = asyncio.create_task(poller.run())
    try:
        async with asyncio.timeout(10):
            while store.resources[CHAT].replica is None:
                await asyncio.sleep(0.01)
    finally:
        polling.cancel()
        await runner.cleanup()
    return store, asked, not queue.is_idle()


@pytest.mark.anyio
async def test_a_service_is_asked_as_a_client_does():
    store, asked, is_news = await polled({})
    assert (asked, is_news) == (["/team-a/chat-serve"], True)
    assert [replica.replica_id for replica in store.observe(CHAT).all_replicas] == asked


@pytest.mark.anyio
async def test_each_pod_that_answers_is_asked_while_a_version_is_tried():
    store, asked, _ = await polled({"rollout": {"phase": "Progressing"}})
    assert sorted(asked) == ["/10.0.0.1", "/[fd00::2]", "/team-a/chat-serve"]
    found = store.observe(CHAT).all_replicas
    assert sorted(replica.replica_id for replica in found) == ["/10.0.0.1", "/[fd00::2]"]
    assert {replica.candidate.weight for replica in found if replica.candidate} == {10}


@pytest.mark.anyio
async def test_of_a_service_that_scales_to_zero_the_first_replica_that_answers_is_enough():
    store, asked, _ = await polled({}, TO_ZERO)
    assert asked == ["/[fd00::2]"]
    assert [replica.replica_id for replica in store.observe(CHAT).all_replicas] == asked


@pytest.mark.anyio
async def test_a_poll_puts_what_a_replica_tells_into_the_store_and_loses_it_with_the_replica():
    store, queue, port = empty_store(spec=TO_ZERO), WorkQueue[Key](time.monotonic), free_port()
    store.put(pod("w", "127.0.0.1", ready=False))
    settings = Settings(replica_state_url=f"http://{{ip}}:{port}/-/state")
    poller = ServicePoller(store, queue, settings=settings, now=lambda: NOW)
    told = ServiceState(name="chat", model_uri=URI, target_uri=URI, loaded=True).to_wire()

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(told)

    app = web.Application()
    app.router.add_get("/-/state", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await poll_until(poller, lambda: store.resources[CHAT].replica is not None)
    assert store.resources[CHAT].replica == ReplicaState(URI, URI, "", NOW)
    assert await queue.get() == CHAT
    await runner.cleanup()
    await poll_until(poller, lambda: store.resources[CHAT].replica is None)


async def poll_until(poller: ServicePoller, condition: Callable[[], bool]) -> None:
    polling = asyncio.create_task(poller.run())
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
    polling.cancel()
