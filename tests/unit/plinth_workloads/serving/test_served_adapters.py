"""Adapters beside a model: asked for by their names, changed while others are answered, each failing alone."""

import asyncio
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest

from plinth_workloads.errors import UserError
from plinth_workloads.serving.asgi import build_asgi
from plinth_workloads.serving.served_model import ServedModel
from plinth_workloads.serving.served_names import ServedNames
from unit.plinth_workloads.serving.asgi_service import CHAT
from unit.plinth_workloads.serving.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

BROKEN = "models:/broken/1"


def fetch(uri, model_uri):
    if uri == BROKEN:
        raise UserError("ModelLoadFailed", f"{uri} was trained for models:/other/1, and {model_uri} is served")
    return Path(uri)


@asynccontextmanager
async def service(adapters, make_engine=lambda uri: FakeEngine(), fetch_adapter=fetch, names=None):
    served = ServedModel(make_engine, fetch_adapter=fetch_adapter)
    served.set_adapters(adapters)
    served.set_target("models:/m/1")
    await served.wait_loaded()
    transport = httpx.ASGITransport(app=build_asgi(served, names or ServedNames("m")), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        client = openai.AsyncOpenAI(base_url="http://test/v1", api_key="x", http_client=cast(Any, http), max_retries=0)
        yield served, http, client
    await served.close()


async def settled(served):
    while served._tasks:
        await asyncio.gather(*served._tasks)


async def test_a_request_names_the_model_or_one_of_its_adapters():
    async with service({"docs": "models:/docs/2"}) as (served, http, client):
        for name in ("m", "docs"):
            answer = await client.chat.completions.create(model=name, messages=CHAT)
            assert answer.model == name
        with pytest.raises(openai.NotFoundError, match="this service serves 'm', 'docs'"):
            await client.completions.create(model="other", prompt="a")
        cards = (await client.models.list()).data
        metrics = (await http.get("/metrics")).text

    assert [request.adapter for request in served.engine.requests] == [None, "docs"]
    assert [(card.id, card.root, card.parent) for card in cards] == [
        ("m", "models:/m/1", None),
        ("docs", "models:/docs/2", "m"),
    ]
    assert 'plinth_generation_tokens_total{model_name="docs"} 2.0' in metrics


async def test_what_follows_an_alias_is_listed_and_answers_by_it_too():
    names = ServedNames("m", {"m": "champion", "docs": "staging"})
    async with service({"docs": "models:/docs/2", "pinned": "models:/p/1"}, names=names) as (served, http, client):
        for name in ("m@champion", "docs@staging"):
            answer = await client.completions.create(model=name, prompt="a")
            assert answer.model == name
        card = await client.models.retrieve("docs@staging")
        names.aliases = {"m": "production"}
        with pytest.raises(openai.NotFoundError, match="serves 'm', 'docs', 'pinned', 'm@production'"):
            await client.completions.create(model="m@champion", prompt="a")
        cards = (await client.models.list()).data
        metrics = (await http.get("/metrics")).text

    assert [request.adapter for request in served.engine.requests] == [None, "docs"]
    assert (card.id, card.root, card.parent, card.alias) == ("docs@staging", "models:/docs/2", "m", "staging")
    assert [(card.id, card.root, card.alias) for card in cards] == [
        ("m", "models:/m/1", None),
        ("docs", "models:/docs/2", None),
        ("pinned", "models:/p/1", None),
        ("m@production", "models:/m/1", "production"),
    ]
    # One model is one series, by whichever name it is asked for.
    assert 'plinth_generation_tokens_total{model_name="docs"} 2.0' in metrics
    assert "@" not in metrics


async def test_adapters_come_change_and_go_without_a_word_to_the_model():
    async with service({"a": "models:/a/1", "b": "models:/b/1"}) as (served, http, _):
        engine = served.engine
        served.set_adapters({"a": "models:/a/2", "c": "models:/c/1"})
        await settled(served)
        state = (await http.get("/-/state")).json()

    assert served.engine is engine
    assert engine.adapters == {"a": Path("models:/a/2"), "c": Path("models:/c/1")}
    assert [(one["name"], one["uri"]) for one in state["adapters"]] == [("a", "models:/a/2"), ("c", "models:/c/1")]


async def test_one_that_cannot_be_attached_is_told_and_the_others_are_answered():
    async with service({"bad": BROKEN, "good": "models:/good/1"}) as (_, http, client):
        with pytest.raises(openai.InternalServerError, match="adapter bad is not ready: models:/broken/1 was"):
            await client.completions.create(model="bad", prompt="a")
        answer = await client.completions.create(model="good", prompt="a")
        state = (await http.get("/-/state")).json()

    assert answer.choices[0].text == "ab"
    assert [one.get("loadError", "") for one in state["adapters"]] == [
        "models:/broken/1 was trained for models:/other/1, and models:/m/1 is served",
        "",
    ]


async def test_an_adapter_that_is_still_loaded_is_said_to_be():
    may_load = threading.Event()

    def slowly(uri, model_uri):
        may_load.wait(10)
        return Path(uri)

    async with service({}, fetch_adapter=slowly) as (served, _, client):
        served.set_adapters({"docs": "models:/docs/2"})
        with pytest.raises(openai.InternalServerError, match="models:/docs/2 is being loaded") as raised:
            await client.completions.create(model="docs", prompt="a")
        may_load.set()
        await settled(served)
        answer = await client.completions.create(model="docs", prompt="a")

    assert raised.value.response.headers["retry-after"] == "5"
    assert answer.model == "docs"


async def test_a_new_version_has_its_adapters_before_it_answers():
    engines = {"models:/m/1": FakeEngine(), "models:/m/2": FakeEngine()}
    async with service({"docs": "models:/docs/2"}, engines.__getitem__) as (served, _, client):
        served.set_target("models:/m/2")
        while served.uri != "models:/m/2":
            answer = await client.completions.create(model="docs", prompt="a")
            assert answer.model == "docs"
        await settled(served)
        await client.completions.create(model="docs", prompt="a")

    assert engines["models:/m/2"].adapters == {"docs": Path("models:/docs/2")}
    assert engines["models:/m/2"].requests[-1].adapter == "docs"


async def test_a_version_that_is_on_its_way_gets_what_is_wanted_in_the_meantime():
    engines = {"models:/m/1": FakeEngine(), "models:/m/2": FakeEngine()}
    asked, may_load = threading.Event(), threading.Event()

    def slowly(uri, model_uri):
        if model_uri == "models:/m/2" and uri == "models:/a/1":
            asked.set()
            may_load.wait(10)
        return Path(uri)

    async with service({"a": "models:/a/1"}, engines.__getitem__, slowly) as (served, _, client):
        served.set_target("models:/m/2")
        await asyncio.to_thread(asked.wait, 10)
        served.set_adapters({"b": "models:/b/1"})
        may_load.set()
        await served.wait_loaded()
        await client.completions.create(model="b", prompt="a")
        await settled(served)

    assert engines["models:/m/2"].adapters == {"b": Path("models:/b/1")}
    assert engines["models:/m/2"].requests[-1].adapter == "b"
