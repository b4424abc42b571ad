"""Who is answered, and what the service says before a client does."""

import openai
import pytest

from plinth_api.model_service import PromptTemplate
from plinth_api.service_state import STATE_PATH
from plinth_workloads.models.model_load import LoadStep
from plinth_workloads.serving.api_keys import ApiKeys
from unit.plinth_workloads.serving.asgi_service import CHAT, service
from unit.plinth_workloads.serving.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


async def test_where_there_are_keys_only_those_who_have_one_are_answered(tmp_path):
    (tmp_path / "alice").write_text("sk-alice")
    keys = ApiKeys(tmp_path)
    async with service(FakeEngine(), keys=keys, key="sk-alice") as (_, http, client):
        assert (await client.completions.create(model="m", prompt="p")).choices[0].text == "ab"
        refused = await http.post("/v1/completions", content=b"{", headers={"Authorization": "Bearer sk-bob"})
        unknown = await http.get("/v1/nothing")
        state, health = await http.get(STATE_PATH), await http.get("/health")

    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert unknown.status_code == 401
    assert (state.json()["apiKeys"], health.status_code) == (1, 200)


async def test_keys_that_are_not_there_open_nothing(tmp_path):
    async with service(FakeEngine(), keys=ApiKeys(tmp_path / "missing")) as (_, http, client):
        with pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
            await client.models.list()
        assert (await http.get(STATE_PATH)).json()["apiKeys"] == 0


async def test_how_far_a_loading_is_is_a_part_of_the_state():
    async with service(FakeEngine()) as (served, http, _):
        assert "loading" not in (await http.get(STATE_PATH)).json()
        served.load.tell(LoadStep("fetching", 100, 3000))
        told = (await http.get(STATE_PATH)).json()["loading"]
    assert told == {"phase": "fetching", "doneBytes": 100, "totalBytes": 3000}


async def test_a_chat_starts_with_the_services_prompt_and_a_completion_does_not():
    engine = FakeEngine()
    async with service(engine) as (served, http, client):
        served.set_target("models:/m/1", PromptTemplate(system="Be kind."))
        await client.chat.completions.create(model="m", messages=CHAT)
        await client.completions.create(model="m", prompt="hi")
        told = (await http.get(STATE_PATH)).json()["promptHash"]

    chat, completion = engine.requests
    assert bytes(chat.prompt_ids) == b"system:Be kind.;user:hi;"
    assert bytes(completion.prompt_ids) == b"hi"
    assert told == served.prompt_hash != ""
