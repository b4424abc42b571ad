"""A new engine answers in each way that costs something the first time, before requests reach it."""

import pytest

from plinth_workloads.serving.engine import GenerationFailed, InvalidParameter, InvalidPrompt
from plinth_workloads.serving.warm_up import warm_up_generation
from unit.plinth_workloads.serving.fake_engine import FakeEngine
from unit.plinth_workloads.serving.tiny_model import make_model, make_tokenizer, running_engine, until

pytestmark = pytest.mark.anyio


async def test_a_long_prompt_a_chat_and_a_schema_are_answered():
    engine = FakeEngine()
    await warm_up_generation(engine)
    long, schema = engine.requests
    assert len(long.prompt_ids) + long.sampling.max_tokens == engine.context_length
    assert schema.sampling.structure.kind == "json_schema"
    assert [message.role for message in engine.messages] == ["user"]


class Bare(FakeEngine):
    """A model without a chat template, whose tokenizer has no token for a text, nor can write JSON."""

    def encode_chat(self, messages, tools=()):
        raise InvalidPrompt("no template")

    def encode(self, text):
        raise InvalidPrompt("no tokens")

    async def generate(self, request):
        if request.sampling.structure is not None:
            raise InvalidParameter("response_format", "no braces")
        async for delta in super().generate(request):
            yield delta


async def test_what_a_model_does_not_have_is_no_reason_not_to_serve_it():
    engine = Bare()
    await warm_up_generation(engine)
    assert engine.requests[0].prompt_ids[0] == 0


async def test_an_engine_that_fails_on_a_long_prompt_is_told():
    with pytest.raises(GenerationFailed):
        await warm_up_generation(FakeEngine(fails_after=1))


async def test_the_torch_engine_is_warm_with_and_without_a_chat_template():
    for template in ("{{ messages[0].content }}", None):
        async with running_engine(make_model(), make_tokenizer(chat_template=template)) as engine:
            await engine.warm_up()
            await until(lambda engine=engine: engine.stats().running == 0)
            assert engine.stats().cache.prompt_tokens > 100
