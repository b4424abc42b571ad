"""Whom a request is counted for."""

import pytest
from starlette.requests import Request

from plinth_workloads.serving.api_keys import ApiKeys
from plinth_workloads.serving.clients import CLIENT, client_of, client_of_key
from plinth_workloads.serving.protocol import CompletionBody
from unit.plinth_workloads.serving.asgi_service import CHAT, service
from unit.plinth_workloads.serving.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


def client(address="10.0.0.1", *, key=None, **told):
    body = CompletionBody.model_validate({"model": "m", "prompt": "p", **told})
    state = {} if key is None else {CLIENT: client_of_key(key)}
    return client_of(Request({"type": "http", "client": address and (address, 4711), "state": state}), body)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(client("10.0.0.2"), id="another address"),
        pytest.param(client(None), id="an address that is not known"),
        pytest.param(client(user="ann"), id="a user"),
        pytest.param(client(safety_identifier="bob", user="ann"), id="by the newer name"),
        pytest.param(client(key="Bearer sk-1"), id="a key"),
    ],
)
def test_clients_are_told_from_each_other(other):
    assert other != client()


def test_a_client_is_the_same_from_one_request_to_the_next_and_tells_nothing():
    assert client(user="ann") == client(user="ann") == client(safety_identifier="ann", user="bob")
    assert client(user=17) == client(user="") == client()
    assert "sk-1" not in client(key="Bearer sk-1")


def test_whoever_has_a_key_gets_no_more_turns_by_telling_many_users():
    assert client(key="Bearer sk-1", user="ann") == client("10.0.0.2", key="Bearer sk-1", user="bob")
    assert client(key="Bearer sk-1") != client(key="Bearer sk-2")


async def test_all_of_a_requests_choices_are_its_clients(tmp_path):
    (tmp_path / "alice").write_text("sk-alice")
    engine = FakeEngine()
    async with service(engine, keys=ApiKeys(tmp_path), key="sk-alice") as (_, _, openai):
        await openai.completions.create(model="m", prompt=["p", "q"], n=2)
        await openai.chat.completions.create(model="m", messages=CHAT, user="ann")
    expected = client_of_key("Bearer sk-alice")
    assert [request.client for request in engine.requests] == engine.places[:1] * 5 == [expected] * 5
