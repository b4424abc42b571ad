"""A random Llama that fits in a test, its byte-level tokenizer, and engines made of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plinth_workloads.serving.compiled_model import CompiledModel
from plinth_workloads.serving.engine import GenerationRequest, SamplingParameters, TokenDelta
from plinth_workloads.serving.torch_engine import TorchEngine

CONTEXT_LENGTH = 128
END_ID = 256
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('tool turns are not known') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE, ends: bool = True) -> Any:
    """One token a byte, and one for the end, which the tokenizer calls so if `ends`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>" if ends else None)
    fast.chat_template = chat_template
    return fast


@cache
def _shared_tokenizer() -> Any:
    """One for all prompts and answers, none of which change it: making it takes longer than reading a prompt."""
    return make_tokenizer()


def make_model(*, seed: int = 0, end_ids: int | list[int] | None = END_ID) -> Any:
    """Weights large enough that the next token depends on the whole context."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=end_ids,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.pad_token_id = 0
    return model


def randomize_lora(adapted: Any, *, seed: int) -> None:
    """Give a new adapter weights that change much of what its model says."""
    torch.manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)


def count_compiled_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each step of one token of each row has that is asked of a compiled model from now on."""
    nums: list[int] = []
    decode = CompiledModel.decode

    def counted(self: CompiledModel, token_ids: Sequence[int], *arguments: Any, **keywords: Any) -> torch.Tensor:
        nums.append(len(token_ids))
        return decode(self, token_ids, *arguments, **keywords)

    monkeypatch.setattr(CompiledModel, "decode", counted)
    return nums


def make_engine(model: Any = None, tokenizer: Any = None, **options: Any) -> TorchEngine:
    """An engine for `model`; a model without an end token gets a tokenizer without one."""
    model = model or make_model()
    ends = model.generation_config.eos_token_id is not None
    return TorchEngine(model, tokenizer or make_tokenizer(ends=ends), **options)


@asynccontextmanager
async def running_engine(model: Any = None, tokenizer: Any = None, **options: Any) -> AsyncIterator[TorchEngine]:
    engine = make_engine(model, tokenizer, **options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def make_request(prompt: str | Sequence[int], *, max_tokens: int = 16, **sampling: Any) -> GenerationRequest:
    ids = tuple(_shared_tokenizer().encode(prompt)) if isinstance(prompt, str) else tuple(prompt)
    return GenerationRequest(ids, SamplingParameters(max_tokens=max_tokens, **{"temperature": 0.0, **sampling}))


async def collect(engine: Any, request: GenerationRequest) -> tuple[str, TokenDelta]:
    """The text and the last delta."""
    text, last = "", None
    async for delta in engine.generate(request):
        text += delta.text
        last = delta
    assert last is not None
    return text, last


def greedy_ids(model: Any, prompt: str, max_tokens: int) -> list[int]:
    """What `model.generate` says."""
    ids = torch.tensor([_shared_tokenizer().encode(prompt)])
    with torch.inference_mode():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
    new: list[int] = made[0, ids.shape[1] :].tolist()
    return new


def greedy_text(model: Any, prompt: str, max_tokens: int) -> str:
    """What `model.generate` says, without half a character at its end."""
    text: str = _shared_tokenizer().decode(greedy_ids(model, prompt, max_tokens), skip_special_tokens=True)
    return text.removesuffix("\ufffd")


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return once it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.005)
