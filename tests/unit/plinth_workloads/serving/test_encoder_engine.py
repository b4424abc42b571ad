"""Texts of many requests in passes of similar length: the same numbers as alone, and nobody waits for a large one."""

import asyncio

import numpy as np
import pytest

from plinth_workloads.serving.engine import (
    ContextLengthExceeded,
    EngineOverloaded,
    EngineStats,
    GenerationFailed,
    InvalidPrompt,
)
from unit.plinth_workloads.serving.tiny_encoder import (
    CONTEXT_LENGTH,
    SIZE,
    GatedModel,
    by_hand,
    make_engine,
    make_text_model,
    running_encoder,
)
from unit.plinth_workloads.serving.tiny_model import until

pytestmark = pytest.mark.anyio

TEXTS = ["a longer text, which is not the last", "ab", "a text of some length", "x" * CONTEXT_LENGTH, "c"]


async def asking(engine, *lengths, client=""):
    """A request for texts of these lengths, which the engine has got."""
    task = asyncio.create_task(engine.compute([[65] * length for length in lengths], client))
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("max_pass_tokens", [16, 2048])
async def test_texts_get_in_any_company_the_vectors_that_they_have_alone(max_pass_tokens):
    async with running_encoder(max_pass_tokens=max_pass_tokens) as engine:
        rows = engine.encode(TEXTS)
        together = await engine.compute(rows)
        beside = await asyncio.gather(*(engine.compute([row]) for row in rows))

    expected = np.stack([by_hand(row) for row in rows])
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(beside), expected, rtol=0, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.05


async def test_what_came_while_a_pass_ran_goes_into_the_next_one_before_the_rest_of_a_large_request():
    model = GatedModel()
    async with running_encoder(model, max_pass_tokens=32) as engine:
        large = await asking(engine, *[16] * 6)
        await until(model.has_begun.is_set)
        small = [await asking(engine, length) for length in (15, 14)]
        assert engine.stats() == EngineStats(running=1, waiting=3)
        model.gate.set()
        await asyncio.gather(large, *small)
        await until(lambda: engine.stats() == EngineStats(running=0, waiting=0))

    assert model.passes == [[16, 16], [14, 15], [16, 16], [16, 16]]


async def test_whose_client_has_gone_is_not_computed():
    model = GatedModel()
    async with running_encoder(model) as engine:
        first = await asking(engine, 8)
        await until(model.has_begun.is_set)
        gone, kept = await asking(engine, 9), await asking(engine, 7)
        gone.cancel()
        await asyncio.wait({gone})
        model.gate.set()
        await asyncio.gather(first, kept)

    assert model.passes == [[8], [7]]


async def test_one_text_does_not_wait_for_all_that_another_client_asked_before():
    model = GatedModel()
    async with running_encoder(model, max_pass_tokens=32) as engine:
        first = await asking(engine, 16, client="many")
        await until(model.has_begun.is_set)
        many = [await asking(engine, 16, client="many") for _ in range(7)]
        one = await asking(engine, 15, client="one")
        model.gate.set()
        await asyncio.gather(first, one, *many)

    assert model.passes == [[16], [15, 16], [16, 16], [16, 16], [16, 16]]


async def test_more_than_may_wait_is_turned_away_and_a_large_request_alone_is_not():
    model = GatedModel()
    async with running_encoder(model, max_pass_tokens=8, max_waiting_tokens=16) as engine:
        large = await asking(engine, *[8] * 5)
        await until(model.has_begun.is_set)
        with pytest.raises(EngineOverloaded, match=r"^40 tokens of yours are being answered or wait"):
            await engine.compute([[65]])
        model.gate.set()
        assert (await large).shape == (5, SIZE)
        assert (await engine.compute([[65]])).shape == (1, SIZE)


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        pytest.param([[1], []], InvalidPrompt, "input 1 has no tokens", id="empty"),
        pytest.param([[1, 257]], InvalidPrompt, "input 0: token id 257 is outside of .* of 257", id="unknown"),
        pytest.param([[1, -1]], InvalidPrompt, "token id -1 is outside", id="negative"),
        pytest.param(
            [[1], [1] * (CONTEXT_LENGTH + 1)],
            ContextLengthExceeded,
            "context length is 64 tokens, and input 1 has 65; shorten it",
            id="too long",
        ),
    ],
)
async def test_what_the_model_cannot_read_is_refused_with_its_place(rows, error, says):
    async with running_encoder() as engine:
        with pytest.raises(error, match=says):
            await engine.compute(rows)


async def test_a_pass_that_fails_takes_down_its_own_requests_only(monkeypatch):
    model = GatedModel()
    model.gate.set()
    async with running_encoder(model, max_pass_tokens=8) as engine:
        monkeypatch.setattr(model, "gate", None)
        with pytest.raises(GenerationFailed, match="AttributeError"):
            await engine.compute([[65] * 8, [66] * 8])
        await until(lambda: engine.stats() == EngineStats(running=0, waiting=0))
        monkeypatch.undo()
        assert (await engine.compute([[65]])).shape == (1, SIZE)


async def test_numbers_that_are_none_are_not_told():
    model = make_text_model()
    embeddings = model.model.get_input_embeddings().weight.data
    embeddings[66] = float("nan")
    async with running_encoder(model) as engine:
        results = await asyncio.gather(engine.compute([[65], [66]]), engine.compute([[65, 65]]), return_exceptions=True)
    assert str(results[0]) == "the model's output is not a finite number"
    np.testing.assert_allclose(results[1], [by_hand([65, 65])], rtol=0, atol=1e-5)


async def test_it_is_healthy_while_it_answers():
    model = GatedModel()
    async with running_encoder(model, health_timeout_seconds=0.1) as engine:
        with pytest.raises(GenerationFailed, match="no answer within"):
            await engine.check_health()
        model.gate.set()
        await until(lambda: engine.stats().running == 0)
        await engine.check_health()


async def test_who_waits_when_it_stops_is_told():
    with pytest.raises(GenerationFailed, match="not running"):
        await make_engine().compute([[65]])
    model = GatedModel()
    async with running_encoder(model, max_pass_tokens=8) as engine:
        waiting = await asking(engine, 8, 8)
        await until(model.has_begun.is_set)
        stopping = asyncio.create_task(engine.stop())
        await asyncio.sleep(0.01)
        model.gate.set()
        with pytest.raises(GenerationFailed, match="the engine was stopped"):
            await waiting
        await stopping
