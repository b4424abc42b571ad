"""Embeddings and classification over HTTP, asked by OpenAI's own client where it has the endpoint."""

import base64

import numpy as np
import openai
import pytest

from plinth_workloads.errors import UserError
from plinth_workloads.serving.encoder import Labels
from unit.plinth_workloads.serving.asgi_service import CHAT, ask_and_leave, service
from unit.plinth_workloads.serving.fake_encoder import FakeEncoder
from unit.plinth_workloads.serving.fake_engine import FakeEngine
from unit.plinth_workloads.serving.tiny_encoder import CONTEXT_LENGTH, SIZE, by_hand, make_engine
from unit.plinth_workloads.serving.tiny_model import make_tokenizer

pytestmark = pytest.mark.anyio

ONE = Labels(("no", "yes"), "one")


def tiny(uri):
    return make_engine()


def unit(vector):
    return np.array(vector) / np.linalg.norm(vector)


async def test_a_text_is_embedded_as_numbers_and_in_base64():
    async with service(tiny) as (_, http, client):
        answer = await client.embeddings.create(model="m", input="abc", encoding_format="float")
        by_default = await client.embeddings.create(model="m", input="abc")
        raw = await http.post("/v1/embeddings", json={"model": "m", "input": "abc", "encoding_format": "base64"})

    expected = by_hand(make_tokenizer().encode("abc"))
    np.testing.assert_allclose(answer.data[0].embedding, expected, rtol=0, atol=1e-5)
    assert np.linalg.norm(answer.data[0].embedding) == pytest.approx(1, abs=1e-6)
    assert by_default.data[0].embedding == answer.data[0].embedding
    decoded = np.frombuffer(base64.b64decode(raw.json()["data"][0]["embedding"]), "<f4")
    assert decoded.tolist() == answer.data[0].embedding
    assert (answer.object, answer.model, answer.data[0].object, answer.data[0].index) == ("list", "m", "embedding", 0)


async def test_texts_and_token_ids_are_embedded_in_their_order_and_counted():
    encoder = FakeEncoder()
    async with service(encoder) as (_, _, client):
        several = await client.embeddings.create(model="m", input=["ab", "c"])
        ids = await client.embeddings.create(model="m", input=[5, 6, 7])
        lists = await client.embeddings.create(model="m", input=[[5], [6, 7]])

    assert [list(row) for row in encoder.rows] == [[97, 98], [99], [5, 6, 7], [5], [6, 7]]
    assert [[one.index for one in answer.data] for answer in (several, ids, lists)] == [[0, 1], [0], [0, 1]]
    assert several.usage.model_dump() == {"prompt_tokens": 3, "total_tokens": 3}


async def test_a_model_that_reads_answers_by_its_alias_too():
    async with service(FakeEncoder(), aliases={"m": "champion"}) as (_, http, client):
        answer = await client.embeddings.create(model="m@champion", input="ab")
        with pytest.raises(openai.NotFoundError, match="serves 'm', 'm@champion'"):
            await client.embeddings.create(model="m@staging", input="ab")
        metrics = (await http.get("/metrics")).text
    assert answer.model == "m@champion"
    assert 'plinth_prompt_tokens_total{model_name="m"} 2.0' in metrics


async def test_a_vector_that_is_cut_has_length_one_again():
    async with service(tiny) as (_, _, client):
        whole = (await client.embeddings.create(model="m", input="abc")).data[0].embedding
        cut = (await client.embeddings.create(model="m", input="abc", dimensions=5)).data[0].embedding
        same = (await client.embeddings.create(model="m", input="abc", dimensions=SIZE)).data[0].embedding

    np.testing.assert_allclose(cut, unit(whole[:5]), rtol=0, atol=1e-6)
    np.testing.assert_allclose(same, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "param", "code", "says"),
    [
        pytest.param({"input": ""}, "input", None, "input: is empty; give a text", id="empty text"),
        pytest.param({"input": []}, "input", None, "input: is empty; give a text", id="no text"),
        pytest.param(
            {"input": ["a", ""]}, "input", None, "input: is empty at 1; leave it out", id="empty among others"
        ),
        pytest.param({"input": [[1], []]}, "input", None, "is empty at 1", id="no ids among others"),
        pytest.param({"input": {"a": 1}}, "input", None, "must be a string, a list of strings", id="no text at all"),
        pytest.param({"input": None}, "input", None, "required", id="missing"),
        pytest.param({"input": ["a"] * 2049}, "input", None, "has 2049 texts; a request may have 2048", id="too many"),
        pytest.param({"input": [999]}, None, "invalid_prompt", "token id 999 is outside", id="unknown token"),
        pytest.param(
            {"input": ["a", "x" * (CONTEXT_LENGTH + 1)]},
            None,
            "context_length_exceeded",
            f"context length is {CONTEXT_LENGTH} tokens, and input 1 has {CONTEXT_LENGTH + 1}",
            id="too long",
        ),
        pytest.param(
            {"dimensions": SIZE + 1}, "dimensions", "invalid_value", "17 is more than the model's 16", id="dimensions"
        ),
        pytest.param({"dimensions": 0}, "dimensions", None, "greater than", id="no dimensions"),
        pytest.param({"encoding_format": "hex"}, "encoding_format", None, "'float' or 'base64'", id="format"),
        pytest.param({"input_type": "query"}, "input_type", "unsupported_parameter", "not supported", id="unknown"),
    ],
)
async def test_bad_requests_are_answered_in_openai_s_shape_and_others_go_on(body, param, code, says):
    async with service(tiny) as (_, http, client):
        refused = await http.post("/v1/embeddings", json={"model": "m", "input": "abc", **body})
        assert len((await client.embeddings.create(model="m", input="abc")).data) == 1

    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]


@pytest.mark.parametrize("path", ["/v1/classify", "/classify"])
async def test_a_text_gets_the_likeliest_label_and_the_probability_of_each(path):
    encoder = FakeEncoder((0.25, 0.75), ONE)
    async with service(encoder) as (_, http, _):
        answer = (await http.post(path, json={"model": "m", "input": ["ab", "c"], "user": "me"})).json()

    assert answer.pop("id").startswith("classify-")
    assert answer.pop("created") > 0
    result = {"label": "yes", "probs": [0.25, 0.75], "num_classes": 2}
    assert answer == {
        "object": "list",
        "model": "m",
        "data": [{"index": 0, **result}, {"index": 1, **result}],
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


@pytest.mark.parametrize(
    ("numbers", "labels", "expected"),
    [
        pytest.param(
            (0.75, 0.25, 0.875),
            Labels(("a", "b", "c"), "several"),
            {"label": "c", "labels": ["a", "c"], "probs": [0.75, 0.25, 0.875], "num_classes": 3},
            id="several",
        ),
        pytest.param(
            (0.25, 0.125),
            Labels(("a", "b"), "several"),
            {"label": "a", "labels": [], "probs": [0.25, 0.125], "num_classes": 2},
            id="none of several",
        ),
        pytest.param(
            (-3.5,),
            Labels(("LABEL_0",), "value"),
            {"label": None, "probs": [], "value": -3.5, "num_classes": 1},
            id="value",
        ),
    ],
)
async def test_several_labels_and_values_are_told_as_such(numbers, labels, expected):
    async with service(FakeEncoder(numbers, labels)) as (_, http, _):
        answer = (await http.post("/v1/classify", json={"model": "m", "input": "ab"})).json()
    assert answer["data"] == [{"index": 0, **expected}]


@pytest.mark.parametrize(
    ("engine", "task", "served", "says"),
    [
        pytest.param(FakeEngine(), "generate", ("completions", "chat"), "generates text; ask /v1/chat", id="generate"),
        pytest.param(FakeEncoder(), "embed", ("embeddings",), "embeds texts; ask /v1/embeddings", id="embed"),
        pytest.param(FakeEncoder(labels=ONE), "classify", ("classify",), "texts; ask /v1/classify", id="classify"),
    ],
)
async def test_a_service_says_what_it_does(engine, task, served, says):
    paths = {
        "completions": ("completions", {"prompt": "p"}),
        "chat": ("chat/completions", {"messages": CHAT}),
        "embeddings": ("embeddings", {"input": "p"}),
        "classify": ("classify", {"input": "p"}),
    }
    async with service(engine) as (_, http, _):
        assert (await http.get("/v1/models")).json()["data"][0]["task"] == task
        for key, (path, body) in paths.items():
            answer = await http.post(f"/v1/{path}", json={"model": "m", **body})
            if key in served:
                assert answer.status_code == 200
            else:
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (400, "endpoint_not_served")
                assert says in error["message"]


@pytest.mark.parametrize(
    ("engine", "labels"),
    [
        pytest.param(FakeEncoder(labels=ONE), ["no", "yes"], id="classify"),
        pytest.param(FakeEncoder(), None, id="embed"),
        pytest.param(FakeEngine(), None, id="generate"),
    ],
)
async def test_a_service_that_classifies_names_its_labels(engine, labels):
    async with service(engine) as (_, http, _):
        assert (await http.get("/v1/models")).json()["data"][0]["labels"] == labels


@pytest.mark.parametrize("path", ["embeddings", "classify"])
async def test_another_model_and_none_are_told_apart(path):
    def fail(uri):
        raise UserError("ModelNotFound", "there is no such model")

    async with service(FakeEncoder()) as (_, http, _):
        other = await http.post(f"/v1/{path}", json={"model": "x", "input": "a"})
    async with service(fail) as (_, http, _):
        none = await http.post(f"/v1/{path}", json={"model": "m", "input": "a"})
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
    assert (none.status_code, none.json()["error"]["code"]) == (503, "model_not_ready")


async def test_requests_and_failures_of_ours_are_counted():
    async with service(FakeEncoder(fails=True)) as (_, http, client):
        with pytest.raises(openai.InternalServerError, match="broken"):
            await client.embeddings.create(model="m", input="a")
        with pytest.raises(openai.BadRequestError):
            await client.embeddings.create(model="m", input="a", dimensions=3)
        state = (await http.get("/-/state")).json()
    assert (state["requests"], state["errors"]) == (2, 1)


async def test_a_client_that_goes_away_cancels_its_request_and_is_no_failure():
    encoder = FakeEncoder()
    await ask_and_leave(encoder, "/v1/embeddings", input="p")
    assert encoder.num_running == 0
