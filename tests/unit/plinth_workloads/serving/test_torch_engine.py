import asyncio
import time
from contextlib import ExitStack, aclosing
from dataclasses import replace

import pytest
import torch

from plinth_workloads.serving import pace, slotted_batch
from plinth_workloads.serving.engine import (
    ChatMessage,
    ContextLengthExceeded,
    EngineOverloaded,
    GenerationFailed,
    InvalidPrompt,
    NoChatTemplate,
)
from unit.plinth_workloads.serving.tiny_model import (
    CONTEXT_LENGTH,
    END_ID,
    collect,
    greedy_ids,
    greedy_text,
    make_model,
    make_request,
    make_tokenizer,
    running_engine,
    until,
)

pytestmark = pytest.mark.anyio

PROMPTS = ["a", "the quick brown fox", "Grüße", "def f(x):\n    return", "0123456789" * 4]


async def test_greedy_alone_is_what_generate_says():
    model = make_model()
    async with running_engine(model) as engine:
        for prompt in PROMPTS:
            text, last = await collect(engine, make_request(prompt, max_tokens=40))
            assert text == greedy_text(model, prompt, 40)
            assert last.num_prompt_tokens == len(prompt.encode())


async def test_greedy_in_a_batch_with_joining_and_leaving_is_what_generate_says():
    model = make_model()
    lengths = [40, 3, 25, 11, 60]
    async with running_engine(model, max_batch_size=3) as engine:

        async def ask(number):
            await asyncio.sleep(0.02 * number)
            prompt, length = PROMPTS[number % 5], lengths[number % 5]
            return await collect(engine, make_request(prompt, max_tokens=length))

        results = await asyncio.gather(*(ask(number) for number in range(10)))

    expected = [greedy_text(model, prompt, length) for prompt, length in zip(PROMPTS, lengths, strict=True)]
    assert [text for text, _ in results] == expected * 2


async def test_a_seed_gives_the_same_text_alone_and_in_company():
    async with running_engine() as engine:
        request = make_request("once", max_tokens=40, temperature=1.0, top_p=0.9, seed=7)
        alone, _ = await collect(engine, request)
        others = [make_request(prompt, max_tokens=30, temperature=1.0, seed=1) for prompt in PROMPTS]
        (together, _), *_ = await asyncio.gather(*(collect(engine, each) for each in (request, *others)))
        different, _ = await collect(engine, make_request("once", max_tokens=40, temperature=1.0, top_p=0.9, seed=8))

    assert alone == together
    assert alone != different


async def test_without_a_seed_every_text_is_different():
    async with running_engine() as engine:
        request = make_request("once", max_tokens=40, temperature=1.0)
        assert (await collect(engine, request))[0] != (await collect(engine, request))[0]


async def test_a_stop_string_over_token_borders_ends_the_text_before_it():
    model = make_model()
    whole = greedy_text(model, "abc", 40)
    stop = whole[10:14]
    async with running_engine(model) as engine:
        text, last = await collect(engine, make_request("abc", max_tokens=40, stop=(stop,)))

    assert text == whole[: whole.index(stop)]
    assert last.finish_reason == "stop"


async def test_of_many_each_client_has_its_first_token_at_once_and_later_ones_together(monkeypatch):
    monkeypatch.setattr(pace, "_LONGEST_PAUSE_SECONDS", 60)
    monkeypatch.setattr(pace, "_PIECES_PER_SECOND", 0.01)
    model, prompts = make_model(end_ids=None), "abcdef"

    async def counts(engine, prompt):
        text, told = "", []
        async for delta in engine.generate(make_request(prompt, max_tokens=12)):
            text += delta.text
            told.append(delta.num_completion_tokens)
        return text, told

    async with running_engine(model) as engine:
        of_many = await asyncio.gather(*(counts(engine, prompt) for prompt in prompts))
        alone = await counts(engine, "a")
    assert [text for text, _ in of_many] == [greedy_text(model, prompt, 12) for prompt in prompts]
    # As rows join one after another, the first may be few enough for a while.
    assert min(len(told) for _, told in of_many) == 2
    assert all(told[-1] == 12 for _, told in of_many)
    assert len(alone[1]) > 6


async def test_max_tokens_ends_the_text_with_length():
    async with running_engine(make_model(end_ids=None)) as engine:
        _, last = await collect(engine, make_request("abc", max_tokens=5))

    assert (last.finish_reason, last.num_completion_tokens, last.num_prompt_tokens) == ("length", 5, 3)


async def test_any_of_several_end_tokens_ends_the_text_and_is_not_part_of_it():
    tokenizer = make_tokenizer()
    model = make_model(end_ids=None)
    whole = greedy_ids(model, "abc", 3)
    model.generation_config.eos_token_id = [999, whole[1]]
    async with running_engine(model) as engine:
        text, last = await collect(engine, make_request("abc", max_tokens=40))

    assert (text, last.finish_reason, last.num_completion_tokens) == (
        tokenizer.decode(whole[:1]).removesuffix("\ufffd"),
        "stop",
        2,
    )


async def test_closing_the_generator_frees_the_row():
    async with running_engine(make_model(end_ids=None), max_batch_size=1) as engine:
        async with aclosing(engine.generate(make_request("a", max_tokens=120))) as deltas:
            await anext(deltas)
        await until(lambda: engine.stats().running == 0)
        text, _ = await collect(engine, make_request("b", max_tokens=4))

    assert text


async def test_cancelling_a_request_that_waits_takes_it_out_of_the_queue():
    async with running_engine(make_model(end_ids=None), max_batch_size=1, max_waiting=1) as engine:
        first = asyncio.create_task(collect(engine, make_request("a", max_tokens=120)))
        await until(lambda: engine.stats().running == 1)
        second = asyncio.create_task(collect(engine, make_request("b", max_tokens=120)))
        await until(lambda: engine.stats().waiting == 1)
        second.cancel()
        await until(lambda: engine.stats().waiting == 0)
        await first


async def test_there_are_places_for_those_who_are_answered_and_those_who_may_wait():
    async with running_engine(max_batch_size=2, max_waiting=1) as engine:
        with ExitStack() as stack:
            for client in "aab":
                stack.enter_context(engine.place_for(client))
            with pytest.raises(EngineOverloaded):
                stack.enter_context(engine.place_for("c"))


async def test_one_request_does_not_wait_for_those_that_another_client_sent_before():
    async with running_engine(make_model(end_ids=None), max_batch_size=2) as engine:
        ended = []

        async def ask(client):
            request = replace(make_request("abc", max_tokens=30), client=client)
            await collect(engine, request)
            ended.append(client)

        many = [asyncio.create_task(ask("many")) for _ in range(20)]
        await until(lambda: engine.stats().running == 2)
        await asyncio.gather(ask("one"), *many)

    assert ended.index("one") <= 4


async def test_prompt_and_completion_must_fit_into_the_context():
    async with running_engine(make_model(end_ids=None)) as engine:
        with pytest.raises(ContextLengthExceeded, match=f"{CONTEXT_LENGTH} tokens, but {CONTEXT_LENGTH + 1} were"):
            await collect(engine, make_request([1] * 100, max_tokens=CONTEXT_LENGTH - 99))
        _, last = await collect(engine, make_request([1] * 100, max_tokens=CONTEXT_LENGTH - 100))

    assert last.num_completion_tokens == CONTEXT_LENGTH - 100


@pytest.mark.parametrize("prompt", [[], [-1], [257]])
async def test_prompts_outside_of_the_vocabulary_are_refused(prompt):
    async with running_engine() as engine:
        with pytest.raises(InvalidPrompt):
            await collect(engine, make_request(prompt))


async def test_a_logit_that_is_not_finite_fails_its_request_only():
    model = make_model(end_ids=None)
    poison = make_tokenizer().encode("~")[0]
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = float("nan")
    async with running_engine(model) as engine:
        bad, good = await asyncio.gather(
            collect(engine, make_request("a~", max_tokens=20)),
            collect(engine, make_request("abc", max_tokens=20)),
            return_exceptions=True,
        )

    assert isinstance(bad, GenerationFailed)
    assert "not a finite number" in str(bad)
    assert isinstance(good, tuple)
    assert good[1].num_completion_tokens == 20


@pytest.mark.parametrize("max_prompt", [1, 100])
async def test_an_error_in_the_loop_fails_its_requests_and_the_engine_goes_on(max_prompt, monkeypatch):
    async with running_engine() as engine:
        healthy = engine._batch.forward

        def fail(pieces):
            if max(len(piece.token_ids) for piece in pieces) > max_prompt:
                return healthy(pieces)
            monkeypatch.setattr(engine._batch, "forward", healthy)
            raise RuntimeError("out of memory")

        monkeypatch.setattr(engine._batch, "forward", fail)
        with pytest.raises(GenerationFailed, match="RuntimeError: out of memory"):
            await collect(engine, make_request("abc"))
        assert (await collect(engine, make_request("abc")))[0]


async def test_a_prompt_that_cannot_be_read_fails_alone(monkeypatch):
    model = make_model(end_ids=None)
    async with running_engine(model) as engine:
        healthy = engine._batch.forward

        def fail(pieces):
            if any(len(piece.token_ids) == 7 for piece in pieces):
                raise RuntimeError("out of memory")
            return healthy(pieces)

        monkeypatch.setattr(engine._batch, "forward", fail)
        good = asyncio.create_task(collect(engine, make_request("abc", max_tokens=100)))
        await until(lambda: engine.stats().running == 1)
        with pytest.raises(GenerationFailed, match="RuntimeError: out of memory"):
            await collect(engine, make_request("abcdefg"))
        text, _ = await good

    assert text == greedy_text(model, "abc", 100)


async def test_healthy_only_where_a_token_is_produced():
    async with running_engine() as engine:
        await engine.check_health()

    broken = make_model()
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    async with running_engine(broken) as engine:
        with pytest.raises(GenerationFailed, match="not a finite number"):
            await engine.check_health()


async def test_a_full_engine_that_makes_tokens_is_healthy():
    async with running_engine(make_model(end_ids=None), max_batch_size=1, max_waiting=0) as engine:
        busy = asyncio.create_task(collect(engine, make_request("a", max_tokens=120)))
        await until(lambda: engine.stats().running == 1)
        await engine.check_health()
        await busy


async def test_an_engine_that_hangs_is_not_healthy(monkeypatch):
    async with running_engine(health_timeout_seconds=0.2) as engine:

        def hang():
            time.sleep(0.5)

        monkeypatch.setattr(engine._worker, "_admit", hang)
        with pytest.raises(GenerationFailed, match="no token within"):
            await engine.check_health()


async def test_a_row_does_not_wait_for_who_reads_it():
    model = make_model(end_ids=None)
    async with (
        running_engine(model) as engine,
        aclosing(engine.generate(make_request("a", max_tokens=60))) as deltas,
    ):
        text = (await anext(deltas)).text
        await until(lambda: engine.stats().running == 0)
        text += "".join([delta.text async for delta in deltas])
    assert text == greedy_text(model, "a", 60)


async def test_stopping_fails_what_still_runs():
    async with running_engine(make_model(end_ids=None)) as engine:
        running = asyncio.create_task(collect(engine, make_request("a", max_tokens=120)))
        await until(lambda: engine.stats().running == 1)
        await engine.stop()
        with pytest.raises(GenerationFailed, match="stopped"):
            await running
        with pytest.raises(GenerationFailed, match="not running"):
            await collect(engine, make_request("a"))


@pytest.mark.parametrize("max_step_tokens", [1, 8, 1000])
async def test_prompts_are_read_in_pieces_between_the_tokens_of_others(max_step_tokens):
    model = make_model()
    async with running_engine(model, max_step_tokens=max_step_tokens) as engine:
        results = await asyncio.gather(*(collect(engine, make_request(prompt)) for prompt in PROMPTS))

    assert [text for text, _ in results] == [greedy_text(model, prompt, 16) for prompt in PROMPTS]


async def test_a_beginning_that_was_read_before_is_not_read_again_and_changes_nothing():
    model = make_model()
    prompt = "def greet(name):\n    return 'hello ' + name\n"
    async with running_engine(model) as engine:
        first, _ = await collect(engine, make_request(prompt))
        again, _ = await collect(engine, make_request(prompt))
        longer, _ = await collect(engine, make_request(prompt + "greet("))
        use = engine.stats().cache

    assert first == again == greedy_text(model, prompt, 16)
    assert longer == greedy_text(model, prompt + "greet(", 16)
    assert use.reused_tokens == 2 * (len(prompt) // 16 * 16)


async def test_where_memory_is_short_a_row_waits_again_and_says_the_same(monkeypatch):
    monkeypatch.setattr(slotted_batch, "_LEAST_CAPACITY", 64)
    model = make_model(end_ids=None)
    model.config.max_position_embeddings = 256
    position_bytes = 2 * 2 * 2 * 8 * 4
    options = {"max_cache_bytes": 256 * position_bytes, "max_batch_size": 4}
    async with running_engine(model, **options) as engine:
        requests = [make_request(prompt, max_tokens=80) for prompt in PROMPTS[:4]]
        results = await asyncio.gather(*(collect(engine, request) for request in requests))
        opened = engine.stats().cache.prompt_tokens

    assert [text for text, _ in results] == [greedy_text(model, prompt, 80) for prompt in PROMPTS[:4]]
    assert [last.num_completion_tokens for _, last in results] == [80] * 4
    assert opened > sum(len(request.prompt_ids) for request in requests)


async def test_a_model_without_slots_is_decoded_in_padded_rows(monkeypatch):
    model = make_model()
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    async with running_engine(model, max_batch_size=3, max_step_tokens=50) as engine:
        results = await asyncio.gather(*(collect(engine, make_request(prompt)) for prompt in PROMPTS * 2))

    assert [text for text, _ in results] == [greedy_text(model, prompt, 16) for prompt in PROMPTS] * 2


async def test_chats_are_encoded_by_the_template():
    async with running_engine() as engine:
        ids = engine.encode_chat([ChatMessage("user", "hi")])
        assert make_tokenizer().decode(ids) == "user: hi\nassistant:"
        with pytest.raises(InvalidPrompt, match="tool turns are not known"):
            engine.encode_chat([ChatMessage("tool", "hi")])
        assert engine.encode("") == [END_ID]
    async with running_engine(tokenizer=make_tokenizer(chat_template=None)) as engine:
        with pytest.raises(NoChatTemplate, match="no chat template"):
            engine.encode_chat([ChatMessage("user", "hi")])
