"""Adapters by request: each row says what the model with its adapter merged in says, whatever is decoded beside it."""

import asyncio
import json
import shutil
import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from plinth_workloads.errors import UserError
from plinth_workloads.models import packed_linear
from plinth_workloads.models.packed_linear import PackedLinear
from plinth_workloads.serving.engine import GenerationFailed, UnknownAdapter
from plinth_workloads.serving.errands import in_one_part
from plinth_workloads.serving.lora_bank import load_lora
from unit.plinth_workloads.serving.tiny_model import (
    CONTEXT_LENGTH,
    END_ID,
    collect,
    greedy_text,
    make_model,
    make_request,
    randomize_lora,
    running_engine,
    until,
)

pytestmark = pytest.mark.anyio

PROMPTS = ["a", "the quick brown fox", "def f(x):\n    return", "0123456789" * 4]
CONFIGS = {
    "one": LoraConfig(r=4, lora_alpha=16, target_modules="all-linear"),
    "two": LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], use_rslora=True),
    "three": LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["k_proj", "v_proj"],
        rank_pattern={"v_proj": 3},
        alpha_pattern={"v_proj": 32},
    ),
}


def make_adapted(seed, config):
    """A model with an adapter that changes much of what it says."""
    adapted = get_peft_model(make_model(), config)
    randomize_lora(adapted, seed=seed)
    return adapted


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Folders and what the merged models are; who changes one changes a copy."""
    folder = tmp_path_factory.mktemp("adapters")
    made = {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        adapted = make_adapted(seed, config)
        adapted.save_pretrained(folder / name)
        made[name] = (folder / name, adapted.merge_and_unload())
    return made


@pytest.fixture(scope="module")
def expected(adapters):
    """What each merged model, and the one without an adapter, says to each prompt in 24 tokens."""
    models = {None: make_model(), **{name: merged for name, (_, merged) in adapters.items()}}
    return {(prompt, name): greedy_text(model, prompt, 24) for prompt in PROMPTS for name, model in models.items()}


@pytest.fixture
def spoiled(adapters, tmp_path):
    """A folder of an adapter to be changed."""
    return shutil.copytree(adapters["two"][0], tmp_path / "two")


async def ask(engine, prompt, adapter, max_tokens=24):
    request = make_request(prompt, max_tokens=max_tokens)
    text, _ = await collect(engine, type(request)(request.prompt_ids, request.sampling, adapter))
    return text


@pytest.mark.parametrize("max_step_tokens", [8, 128])
async def test_each_request_is_answered_with_its_own_adapter(adapters, expected, max_step_tokens):
    async with running_engine(max_step_tokens=max_step_tokens, max_batch_size=9) as engine:
        for name, (folder, _) in adapters.items():
            await engine.attach_adapter(name, folder)
        said = await asyncio.gather(*(ask(engine, prompt, name) for prompt, name in expected))
        alone = [await ask(engine, prompt, name) for prompt, name in expected]

    assert said == alone == list(expected.values())
    assert len({expected[PROMPTS[1], name] for name in (None, *CONFIGS)}) == 4


@pytest.mark.parametrize("packed", [True, False])
async def test_gpt2_whose_linear_layers_lie_the_other_way_round_has_adapters_too(tmp_path, monkeypatch, packed):
    if not packed:
        monkeypatch.setattr(packed_linear, "_works", lambda: False)
    adapted = get_peft_model(make_gpt2(), LoraConfig(r=4, lora_alpha=16, target_modules=["c_attn", "c_proj", "c_fc"]))
    randomize_lora(adapted, seed=0)
    adapted.save_pretrained(tmp_path / "one")
    models = {None: make_gpt2(), "one": adapted.merge_and_unload()}
    wanted = [(prompt, name) for prompt in PROMPTS for name in models]
    async with running_engine(make_gpt2()) as engine:
        kinds = {type(module) for module in engine._model.modules()}
        assert (PackedLinear in kinds, Conv1D in kinds) == (packed, not packed)
        await engine.attach_adapter("one", tmp_path / "one")
        said = await asyncio.gather(*(ask(engine, prompt, name) for prompt, name in wanted))
    assert said == [greedy_text(models[name], prompt, 24) for prompt, name in wanted]
    assert greedy_text(models[None], PROMPTS[1], 24) != greedy_text(models["one"], PROMPTS[1], 24)


def make_gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": 257, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT_LENGTH}
    model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.4, bos_token_id=None, eos_token_id=END_ID)).eval()
    model.generation_config.pad_token_id = 0
    return model


@pytest.mark.parametrize("names", [["one", "one", "one"], [None, "one", "one"], ["one", None, "one"]])
async def test_rows_of_a_single_adapter_are_answered_with_it_side_by_side_or_apart(adapters, expected, names):
    wanted = list(zip(PROMPTS, names, strict=False))
    async with running_engine() as engine:
        await engine.attach_adapter("one", adapters["one"][0])
        said = await asyncio.gather(*(ask(engine, prompt, name) for prompt, name in wanted))
    assert said == [expected[one] for one in wanted]


async def test_one_adapter_does_not_take_another_ones_beginning(adapters, expected):
    prompt = PROMPTS[3]
    async with running_engine() as engine:
        await engine.attach_adapter("one", adapters["one"][0])
        await ask(engine, prompt, None)
        before = engine.stats().cache.reused_tokens
        text = await ask(engine, prompt, "one")
        between = engine.stats().cache.reused_tokens
        again = await ask(engine, prompt, "one")
        after = engine.stats().cache.reused_tokens

    assert text == again == expected[prompt, "one"]
    assert (between - before, after - between) == (0, len(prompt) // 16 * 16)


async def test_an_adapter_comes_changes_and_goes_while_others_are_answered(adapters, monkeypatch):
    model = make_model(end_ids=None)
    async with running_engine(model) as engine:
        others = asyncio.create_task(ask(engine, "abc", None, max_tokens=100))
        await engine.attach_adapter("mine", adapters["one"][0])
        first = asyncio.create_task(ask(engine, "abc", "mine", max_tokens=60))
        while engine.stats().running < 2:
            await asyncio.sleep(0.001)
        await engine.attach_adapter("mine", adapters["two"][0])
        second = await ask(engine, "abc", "mine")
        await engine.detach_adapter("mine")
        with pytest.raises(UnknownAdapter):
            await ask(engine, "abc", "mine")
        texts = await asyncio.gather(others, first)

    for _, merged in adapters.values():
        monkeypatch.setattr(merged.generation_config, "eos_token_id", None)
    assert texts[0] == greedy_text(model, "abc", 100)
    assert texts[1] == greedy_text(adapters["one"][1], "abc", 60)  # it went on with the adapter that it began with
    assert second == greedy_text(adapters["two"][1], "abc", 24)


async def test_places_of_adapters_that_went_are_used_again(adapters):
    async with running_engine() as engine:
        for _ in range(20):
            for name, (folder, _) in adapters.items():
                await engine.attach_adapter(name, folder)
            await engine.detach_adapter("one")
        bank = engine._batch.adapters
        assert bank._num <= 8
        assert await ask(engine, "abc", "two") == greedy_text(adapters["two"][1], "abc", 24)


async def test_steps_come_between_the_parts_of_an_adapter_for_which_the_bank_grows(adapters, monkeypatch):
    model = make_model(end_ids=None)
    async with running_engine(model) as engine:
        bank, worker = engine._batch.adapters, engine._worker
        bank._bytes_at_once = 1
        await engine.attach_adapter("two", adapters["two"][0])
        text = asyncio.create_task(ask(engine, "abc", "two", max_tokens=100))
        await until(lambda: engine.stats().running)
        step, sizes_of_steps = worker._step, []

        def seen():
            sizes_of_steps.append({down_AIR.shape[::2] for down_AIR, _ in bank._stacks.values()})
            step()

        monkeypatch.setattr(worker, "_step", seen)
        for number in range(5):
            await engine.attach_adapter(f"one-{number}", adapters["one"][0])
        said = await text, await ask(engine, "abc", "one-4")
    for _, merged in adapters.values():
        monkeypatch.setattr(merged.generation_config, "eos_token_id", None)
    assert said == (greedy_text(adapters["two"][1], "abc", 100), greedy_text(adapters["one"][1], "abc", 24))
    assert {(4, 2), (4, 4)} in sizes_of_steps  # ranks
    assert {(4, 4), (8, 4)} in sizes_of_steps  # places


async def test_adapters_that_are_asked_for_at_once_have_places_of_their_own(adapters):
    async with running_engine() as engine:
        names = [f"{name}-{number}" for number in range(4) for name in adapters]
        await asyncio.gather(*(engine.attach_adapter(name, adapters[name.partition("-")[0]][0]) for name in names))
        said = await asyncio.gather(*(ask(engine, "abc", name) for name in names))
    assert said == [greedy_text(adapters[name.partition("-")[0]][1], "abc", 24) for name in names]


async def test_an_adapter_that_is_given_up_on_its_way_leaves_its_place_to_others(adapters):
    model = make_model(end_ids=None)
    async with running_engine(model) as engine:
        bank = engine._batch.adapters
        await engine.attach_adapter("two", adapters["two"][0])
        bank._bytes_at_once, num_free = 1, len(bank._free)
        text = asyncio.create_task(ask(engine, "abc", "two", max_tokens=100))
        attaching = asyncio.create_task(engine.attach_adapter("one", adapters["one"][0]))
        await until(lambda: len(bank._free) < num_free)
        attaching.cancel()
        await asyncio.wait({attaching})
        await text
        await until(lambda: len(bank._free) == num_free)
        with pytest.raises(UnknownAdapter):
            await ask(engine, "abc", "one")


def change(folder, file, edit):
    path = folder / file
    if file.endswith(".json"):
        config = json.loads(path.read_text())
        edit(config)
        path.write_text(json.dumps(config))
    else:
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("adapter_config.json", lambda config: config.update(peft_type="IA3"), "IA3 is not served beside others"),
        ("adapter_config.json", lambda config: config.update(use_dora=True), "LORA with use_dora is not served beside"),
        (
            "adapter_model.safetensors",
            lambda tensors: tensors.update(
                {key.replace("q_proj", "qkv"): tensors[key].clone() for key in list(tensors)}
            ),
            r"is for another model: no linear layer model\.layers\.0\.self_attn\.qkv",
        ),
        (
            "adapter_model.safetensors",
            lambda tensors: tensors.update({key: torch.zeros(2, 7) for key in tensors if "q_proj.lora_A" in key}),
            r"is for another model: model\.layers\.0\.self_attn\.q_proj has another size",
        ),
        (
            "adapter_model.safetensors",
            lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.zeros(1)}),
            r"lm_head\.weight is no part of a LoRA of linear layers",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(spoiled, file, edit, message):
    change(spoiled, file, edit)
    with pytest.raises(UserError, match=message):
        load_lora(spoiled, make_model())


def test_damaged_files_are_refused(spoiled):
    (spoiled / "adapter_model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors cannot be read"):
        load_lora(spoiled, make_model())
    (spoiled / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="is no adapter"):
        load_lora(spoiled, make_model())


async def test_a_model_in_padded_rows_takes_no_adapter_and_says_so(adapters, monkeypatch):
    model = make_model()
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    async with running_engine(model) as engine:
        with pytest.raises(UserError, match="no adapters are served beside a llama; serve it as"):
            await engine.attach_adapter("one", adapters["one"][0])


async def test_an_adapter_that_comes_as_the_engine_stops_is_refused_and_nobody_waits_for_it(adapters, monkeypatch):
    in_a_step, may_end = threading.Event(), threading.Event()

    def linger():
        in_a_step.set()
        may_end.wait(10)

    async with running_engine() as engine:
        monkeypatch.setattr(engine._worker, "_admit", linger)
        engine._worker.between_steps(in_one_part(lambda: None))
        await asyncio.to_thread(in_a_step.wait, 10)
        before = asyncio.create_task(engine.attach_adapter("one", adapters["one"][0]))
        await until(lambda: engine._worker._errands)
        stopping = asyncio.create_task(engine.stop())
        await until(lambda: engine._worker._stopping)
        with pytest.raises(GenerationFailed, match="the engine was stopped"):
            await engine.attach_adapter("two", adapters["two"][0])
        may_end.set()
        await stopping
        with pytest.raises(GenerationFailed, match="the engine was stopped"):
            await asyncio.wait_for(before, 10)


async def test_who_no_longer_waits_for_an_adapter_takes_nothing_from_others(adapters):
    model = make_model(end_ids=None)
    async with running_engine(model) as engine:
        text = asyncio.create_task(ask(engine, "abc", None, max_tokens=100))
        for _ in range(20):
            attaching = asyncio.create_task(engine.attach_adapter("one", adapters["one"][0]))
            await asyncio.sleep(0.002)
            attaching.cancel()
            await asyncio.wait({attaching})
        assert await text == greedy_text(model, "abc", 100)
