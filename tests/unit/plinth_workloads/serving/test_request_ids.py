"""Ids of requests: taken over, replaced, told on every answer and in the log."""

import logging

import pytest

from plinth_workloads.serving.api_keys import ApiKeys
from plinth_workloads.serving.request_ids import MAX_ID_LENGTH, RequestIds, request_id
from unit.plinth_workloads.serving.asgi_service import service
from unit.plinth_workloads.serving.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

ID = {"X-Request-Id": "ticket 17"}


async def test_every_answer_has_the_id_that_its_request_came_with(tmp_path, monkeypatch):
    (tmp_path / "alice").write_text("sk")
    engine = FakeEngine()
    headers = {**ID, "Authorization": "Bearer sk"}
    async with service(engine, keys=ApiKeys(tmp_path)) as (_, http, _):
        body = {"model": "m", "prompt": "p"}
        answers = [
            await http.post("/v1/completions", json=body, headers=headers),
            await http.post("/v1/completions", json={**body, "stream": True}, headers=headers),
            await http.post("/v1/completions", json=body, headers=ID),
            await http.post("/v1/completions", content=b"{", headers=headers),
            await http.get("/v1/nothing", headers=headers),
            await http.get("/health", headers=headers),
        ]
        monkeypatch.setattr(engine, "encode", lambda text: 1 / 0)
        answers.append(await http.post("/v1/completions", json=body, headers=headers))

    assert [answer.status_code for answer in answers] == [200, 200, 401, 400, 404, 200, 500]
    assert {answer.headers["X-Request-Id"] for answer in answers} == {"ticket 17"}


@pytest.mark.parametrize("given", [None, "", "x" * (MAX_ID_LENGTH + 1), "caf\u00e9", "a\tb"])
async def test_a_request_without_an_id_that_can_be_logged_gets_a_new_one(given):
    headers = {} if given is None else {"X-Request-Id": given.encode("latin-1")}
    async with service(FakeEngine()) as (_, http, _):
        ids = [(await http.get("/health", headers=headers)).headers["X-Request-Id"] for _ in range(2)]

    assert ids[0] != ids[1]
    assert [len(one) for one in ids] == [32, 32]


@pytest.mark.parametrize(("given", "added"), [("ticket", 0), ("x" * 500, 1)])
async def test_a_front_that_repeats_ids_is_left_to_do_it_but_for_an_id_that_was_replaced(given, added):
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.extend(message["headers"])

    async def receive():
        raise AssertionError("nothing is read")

    named = RequestIds(app, front_repeats_ids=True)
    await named({"type": "http", "headers": [(b"x-request-id", given.encode())]}, receive, send)
    assert len(sent) == added


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_is_logged_with_the_id_of_its_request(caplog, stream):
    caplog.set_level(logging.WARNING)
    body = {"model": "m", "prompt": "secret prompt", "stream": stream}
    async with service(FakeEngine(fails_after=1)) as (_, http, _):
        with caplog.at_level(logging.ERROR):
            await http.post("/v1/completions", json=body, headers=ID)
            await http.post("/v1/completions", json={**body, "temperature": 9}, headers=ID)

    assert [record.getMessage() for record in caplog.records] == ["request ticket 17 failed: broken"]
    assert "secret" not in caplog.text


async def test_a_bug_is_logged_once_with_its_traceback_and_the_id(caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    engine = FakeEngine()
    monkeypatch.setattr(engine, "encode", lambda text: 1 / 0)
    async with service(engine) as (_, http, _):
        await http.post("/v1/completions", json={"model": "m", "prompt": "p"}, headers=ID)

    (record,) = [record for record in caplog.records if record.name.startswith("plinth")]
    assert record.getMessage() == "request ticket 17 failed"
    assert record.exc_info[0] is ZeroDivisionError


def test_outside_of_a_request_there_is_no_id():
    assert request_id() == "-"
