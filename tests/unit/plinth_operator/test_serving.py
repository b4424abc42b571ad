"""What the operator reads of what a replica tells, in the words of the replica itself."""

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web

from plinth_api.service_state import AdapterState, CandidateState, ServiceState
from plinth_operator.facts import PodFacts, RayServiceFacts, ReplicaState
from plinth_operator.queue import WorkQueue
from plinth_operator.serving import ServicePoller, replica_state
from plinth_operator.store import Key, Store

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


def test_what_another_version_of_the_image_tells_besides_is_passed_over():
    told = {**ServiceState(target_uri=URI).to_wire(), "cacheHits": 3}
    assert replica_state(json.dumps(told).encode(), NOW).target_uri == URI


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"modelUri": 1}'])
def test_the_answer_of_something_else_is_refused(body):
    with pytest.raises(ValueError, match="ServiceState"):
        replica_state(body, NOW)


CHAT = Key("ModelService", "team-a", "chat")


def pod(name: str, ip: str, **changes: Any) -> PodFacts:
    return PodFacts("Pod", "team-a", name, name, "u1", 1, **{"role": "worker", "ready": True, "ip": ip, **changes})


def make_store(status: dict[str, Any]) -> Store:
    """A service with two workers that answer, one that does not yet, one that is going, and a head."""
    store = Store()
    meta = {"namespace": "team-a", "name": "chat", "uid": "u1", "resourceVersion": "1"}
    store.put_resource({"kind": "ModelService", "metadata": meta, "status": status})
    others = (
        pod("late", "10.0.0.3", ready=False),
        pod("going", "10.0.0.4", deleting=True),
        pod("head", "10.0.0.5", role="head"),
    )
    for found in (pod("a", "10.0.0.1"), pod("b", "fd00::2"), *others):
        store.put(found)
    store.put(RayServiceFacts("RayService", "team-a", "chat", "r1", "u1", 1))
    return store


async def polled(status: dict[str, Any]) -> tuple[Store, list[str], bool]:
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
    store, queue = make_store(status), WorkQueue[Key](time.monotonic)
    poller = ServicePoller(store, queue, url=url + "/{namespace}/{service}", replica_url=url + "/{ip}", now=lambda: NOW)
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
