"""What a new engine answers before requests reach it, so that the first of them is as fast as the others.

Enters: an engine that answers. Leaves: the same, with what is made at first use: memory for long prompts, the compiled
chat template, the tables of structured output.
"""

import json
from contextlib import aclosing, suppress

from plinth_workloads.serving.engine import (
    ChatMessage,
    Engine,
    GenerationRequest,
    InvalidParameter,
    InvalidPrompt,
    SamplingParameters,
    StructuredOutput,
)

_LONGEST_PROMPT = 512
"""Tokens; longer prompts are read in pieces of about this length."""
_NUM_TOKENS = 2


async def warm_up_generation(engine: Engine) -> None:
    """Let `engine` read a long prompt, a chat and a schema.

    Raises:
        GenerationFailed: It fails on one of them.
    """
    # A model without a chat template, or whose template wants other turns, is served all the same.
    with suppress(InvalidPrompt):
        engine.encode_chat([ChatMessage("user", "a")])
    try:
        token = engine.encode("a")[0]
    except InvalidPrompt:
        token = 0
    num_tokens = min(_NUM_TOKENS, engine.context_length - 1)
    longest = min(_LONGEST_PROMPT, engine.context_length - num_tokens)
    await _answer(engine, GenerationRequest((token,) * longest, SamplingParameters(max_tokens=num_tokens, seed=0)))
    schema = StructuredOutput("json_schema", json.dumps({"type": "object"}), "response_format")
    # Some tokenizers cannot write what a schema asks for; a request for it is told so.
    with suppress(InvalidParameter):
        await _answer(engine, GenerationRequest((token,), SamplingParameters(max_tokens=1, structure=schema)))


async def _answer(engine: Engine, request: GenerationRequest) -> None:
    async with aclosing(engine.generate(request)) as deltas:
        async for _ in deltas:
            pass
