"""The light engine beside transformers' own continuous batching and a bare batched decode loop: same model and prompts.

Llamas with random weights answer 32 clients at once, greedily, all prompts and answers equally long. Ours is the whole
engine, its queue, sampling and text included, without HTTP; `compiled` is the same with `spec.compile`. The bound is a
loop that does nothing but call the model on the 32 rows and take the likeliest tokens; the peer is `generate_batch`.
One client alone is measured against the same loop with one row. Sides take turns, each in a process of its own.

    python benchmarks/serve_engine.py [--device cuda] [--model small base] [--rounds 5] [--no-peer]
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import serving_table
from brief import briefly
from comparison import tell_measured
from plinth_workloads.serving.engine import GenerationRequest, SamplingParameters
from plinth_workloads.serving.torch_engine import TorchEngine
from record import spread, write_record
from side_processes import Block, side_processes
from turns import ratios, take_turns

_END = "<end>"
_OURS = ("ours", "compiled")
CLIENTS = 32
PROMPT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Subject:
    """A llama, and how many tokens each client has made."""

    config: Mapping[str, int]
    new_tokens: int


SUBJECTS = {
    "small": Subject(
        {
            "vocab_size": 8192,
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
        },
        64,
    ),
    "base": Subject(
        {
            "vocab_size": 32000,
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 10,
            "num_attention_heads": 12,
        },
        32,
    ),
}


def make_model(subject: Subject, device: torch.device) -> Any:
    """Random weights, which cost as much as learned ones; no token ends a text."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(_config(subject)).eval().to(device)
    model.generation_config.pad_token_id = 0
    return model


def _config(subject: Subject) -> LlamaConfig:
    return LlamaConfig(
        **subject.config, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None
    )


def make_tokenizer(vocab_size: int) -> Any:
    """Whose every token is a word, so that each has text to be sent; the one that ends a text, the model has not."""
    vocab = {**{f"w{number} ": number for number in range(vocab_size)}, _END: vocab_size}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="w0 "))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w0 ", eos_token=_END)


class Sides:
    """The three ways to have `num_clients` prompts answered, each as the seconds that it takes; made once asked for."""

    def __init__(self, subject: Subject, device: torch.device, *, compile: bool = False) -> None:
        self.subject, self.device, self._compile = subject, device, compile
        self._generator = torch.Generator().manual_seed(1)

    @cached_property
    def model(self) -> Any:
        """As transformers has it."""
        return briefly(partial(make_model, self.subject, self.device))

    @cached_property
    def engine(self) -> TorchEngine:
        """Ours, not started."""
        tokenizer = make_tokenizer(self.subject.config["vocab_size"])
        model = briefly(partial(make_model, self.subject, self.device))
        return briefly(lambda: TorchEngine(model, tokenizer, max_batch_size=CLIENTS, compile=self._compile))

    def prompts(self, num_clients: int) -> list[list[int]]:
        """New ones each time, so that no beginning was read before."""
        vocab_size = self.subject.config["vocab_size"]
        drawn: list[list[int]] = torch.randint(
            vocab_size, (num_clients, PROMPT_TOKENS), generator=self._generator
        ).tolist()
        return drawn

    async def ours(
        self,
        num_clients: int,
        adapters: Sequence[str | None] = (),
        *,
        on_first_token: Callable[[], None] = lambda: None,
    ) -> float:
        """Through the engine, each client with its adapter; `on_first_token` is called once for each client."""
        prompts = self.prompts(num_clients)
        sampling = SamplingParameters(max_tokens=self.subject.new_tokens, temperature=0)

        async def ask(prompt: Sequence[int], adapter: str | None) -> int:
            made = 0
            async for delta in self.engine.generate(GenerationRequest(tuple(prompt), sampling, adapter)):
                if not made:
                    on_first_token()
                made = delta.num_completion_tokens
            return made

        began = time.perf_counter()
        made = await asyncio.gather(
            *(ask(*each) for each in zip(prompts, adapters or [None] * num_clients, strict=True))
        )
        assert set(made) == {self.subject.new_tokens}
        return time.perf_counter() - began

    def bare(self, num_clients: int) -> float:
        """A loop over the model and nothing else."""
        return briefly(partial(self._bare, num_clients))

    @torch.inference_mode()
    def _bare(self, num_clients: int) -> float:
        ids = torch.tensor(self.prompts(num_clients), device=self.device)
        began = time.perf_counter()
        output = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        tokens = output.logits[:, -1].argmax(-1, keepdim=True)
        for _ in range(self.subject.new_tokens - 1):
            output = self.model(input_ids=tokens, past_key_values=output.past_key_values, use_cache=True)
            tokens = output.logits[:, -1].argmax(-1, keepdim=True)
        tokens.tolist()
        return time.perf_counter() - began

    def peer(self, num_clients: int) -> float:
        """Transformers' continuous batching."""
        wanted = GenerationConfig(max_new_tokens=self.subject.new_tokens, do_sample=False, eos_token_id=-1)
        prompts = self.prompts(num_clients)
        began = time.perf_counter()
        answers = self.model.generate_batch(prompts, generation_config=wanted)
        seconds = time.perf_counter() - began
        assert {len(answer.generated_tokens) for answer in answers.values()} == {self.subject.new_tokens}
        self.model.set_attn_implementation("sdpa")
        return seconds


def make_side(side: str, name: str, device: torch.device) -> Block:
    """One side of the comparison, ready to be timed."""
    is_compiled = side == "compiled"
    sides = Sides(SUBJECTS[name], device, compile=is_compiled)
    if side not in _OURS:
        block: Block = getattr(sides, side)
        return block
    loop = asyncio.new_event_loop()
    loop.run_until_complete(sides.engine.start())
    if is_compiled:
        loop.run_until_complete(sides.engine.warm_up())
    return lambda clients: loop.run_until_complete(sides.ours(clients))


def measure(name: str, device: torch.device, *, rounds: int, with_peer: bool) -> dict[str, Any]:
    """All figures of one model."""
    subject = SUBJECTS[name]
    with side_processes(make_side, [*_OURS, "bare", *(["peer"] if with_peer else [])], name, device) as blocks:
        alone = take_turns({side: blocks[side] for side in (*_OURS, "bare")}, rounds * 3, 1)
        together = take_turns(blocks, rounds, CLIENTS)
    num_tokens = CLIENTS * subject.new_tokens
    figures: dict[str, Any] = {
        "parameters": LlamaForCausalLM(_config(subject)).num_parameters(),
        "tokens_per_second": {
            side: spread([num_tokens / one for one in seconds], 1) for side, seconds in together.items()
        },
        "one_client_seconds_per_token": {
            side: spread([one / subject.new_tokens for one in seconds]) for side, seconds in alone.items()
        },
        "one_client_seconds_per_token_over_bare": spread(ratios(alone["ours"], alone["bare"]), 3),
        "compiled_one_client_seconds_per_token_over_bare": spread(ratios(alone["compiled"], alone["bare"]), 3),
    }
    for own in _OURS:
        figures[f"{own}_over"] = {
            side: spread(ratios(seconds, together[own]), 3) for side, seconds in together.items() if side not in _OURS
        }
    return figures


def main() -> int:
    """Measure, write the record, and say whether the bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", nargs="+", choices=sorted(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true", help="the peer takes most of the time")
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    figures = {
        name: measure(name, device, rounds=arguments.rounds, with_peer=not arguments.no_peer)
        for name in arguments.model
    }
    kept = tell_measured(serving_table.ROWS, "serve_engine", figures)
    if not arguments.no_record:
        settings: dict[str, Any] = {"clients": CLIENTS, "prompt_tokens": PROMPT_TOKENS, "rounds": arguments.rounds}
        settings["new_tokens"] = {name: SUBJECTS[name].new_tokens for name in arguments.model}
        sys.stdout.write(f"{write_record('serve_engine', device, settings, figures, has_own_load=True)}\n")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
