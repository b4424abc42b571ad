"""An engine whose steps are compiled says what the model says, compiles nothing while it serves, and can do without."""

import asyncio
from dataclasses import replace

import pytest
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from plinth_workloads.models.packed_linear import PackedLinear
from unit.plinth_workloads.serving.tiny_model import (
    collect,
    count_compiled_steps,
    greedy_text,
    make_model,
    make_request,
    randomize_lora,
    running_engine,
)

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
PROMPTS = ["def add(a, b):", "import", "for name in names:\n    print(", "x", "def add(a, b):\n    return"]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def steps(monkeypatch):
    """How many rows each compiled step had."""
    return count_compiled_steps(monkeypatch)


async def ask(engine, prompt, adapter=None):
    text, _ = await collect(engine, replace(make_request(prompt, max_tokens=24), adapter=adapter))
    return text


async def test_every_text_is_the_models_own_and_no_request_waits_for_the_compiler(steps, tmp_path):
    adapted = get_peft_model(make_model(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    randomize_lora(adapted, seed=1)
    adapted.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload()
    plain = {prompt: greedy_text(make_model(), prompt, 24) for prompt in PROMPTS}
    counters.clear()
    async with running_engine(compile=True) as engine:
        await engine.warm_up()
        assert any(isinstance(module, PackedLinear) for module in engine._model.modules())
        graphs = counters["stats"]["unique_graphs"]
        # Of one token, of one of each row, and of any number of each.
        assert (graphs, sum(counters["graph_break"].values())) == (3, 0)
        as_python: list[bool] = []
        engine._model.register_forward_pre_hook(lambda *_: as_python.append(True))
        steps.clear()
        assert {prompt: await ask(engine, prompt) for prompt in PROMPTS} == plain
        assert set(steps) == {1}
        steps.clear()
        for _ in range(2):  # the second time their beginnings are known
            assert list(await asyncio.gather(*(ask(engine, prompt) for prompt in PROMPTS))) == list(plain.values())
        assert max(steps) == len(PROMPTS)
        assert not as_python
        steps.clear()
        await engine.attach_adapter("mine", tmp_path)
        assert await ask(engine, "import", "mine") == greedy_text(merged, "import", 24)
        assert steps == []
        assert as_python
        beside = await asyncio.gather(ask(engine, "import", "mine"), ask(engine, "x"))
        assert beside == [greedy_text(merged, "import", 24), plain["x"]]
        assert counters["stats"]["unique_graphs"] == graphs


async def test_two_versions_are_each_compiled_for_themselves(steps):
    counters.clear()
    models = [make_model(seed=seed) for seed in (1, 2)]
    async with running_engine(models[0], compile=True) as old, running_engine(models[1], compile=True) as new:
        await asyncio.gather(old.warm_up(), new.warm_up())
        steps.clear()
        texts = await asyncio.gather(ask(old, "import"), ask(new, "import"))
    assert texts == [greedy_text(make_model(seed=seed), "import", 24) for seed in (1, 2)]
    assert texts[0] != texts[1]
    assert steps


async def test_where_there_is_no_compiler_the_engine_serves_all_the_same(steps, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    async with running_engine(compile=True) as engine:
        with fresh_cache():
            await engine.warm_up()
        steps.clear()
        assert await ask(engine, "import") == greedy_text(make_model(), "import", 24)
    assert "LlamaForCausalLM is not compiled: " in caplog.text
    assert steps == []
