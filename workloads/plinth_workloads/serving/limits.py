"""What one request may ask for: tokens of a prompt, tokens of an answer, and the time for both.

Enters: the service's limits and a request. Leaves: a number of tokens, or an error that names the parameter. The size
of a body is body_limit.py's, which knows HTTP.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from plinth_api.run import ServeLimits
from plinth_workloads.serving.engine import InvalidParameter
from plinth_workloads.serving.protocol import ChatBody, GenerationBody

DEFAULT_COMPLETION_TOKENS = 16
"""max_tokens of a completion that does not say; OpenAI's. A chat may fill the context."""

_Item = TypeVar("_Item")


class RequestTimedOut(Exception):
    """A request took longer than it may; the message says how long that is."""


def check_prompt(limits: ServeLimits, num_tokens: int, *, param: str) -> None:
    """Refuse a prompt that is too long.

    Args:
        limits: Of the service.
        num_tokens: Tokens of the prompt, with what the service puts before it.
        param: The parameter that holds it.

    Raises:
        InvalidParameter: It has more tokens than the service takes.
    """
    most = limits.max_prompt_tokens
    if most is not None and num_tokens > most:
        text = f"the prompt has {num_tokens} tokens, and this service takes at most {most}; shorten it"
        raise InvalidParameter(param, f"{param}: {text}")


def max_tokens_of(limits: ServeLimits, body: GenerationBody, *, num_free: int) -> int:
    """How many tokens an answer may have: what is asked for, or else what the service makes.

    Args:
        limits: Of the service.
        body: The request.
        num_free: Tokens that the context has room for.

    Raises:
        InvalidParameter: The request asks for more than the service makes.
    """
    param, asked, default = "max_tokens", body.max_tokens, min(DEFAULT_COMPLETION_TOKENS, num_free)
    if isinstance(body, ChatBody):
        default = num_free
        if body.max_completion_tokens:
            param, asked = "max_completion_tokens", body.max_completion_tokens
    check_output(limits, asked, param=param)
    return asked or min(default, limits.max_output_tokens or default)


def check_output(limits: ServeLimits, asked: int | None, *, param: str) -> None:
    """Refuse a request for too long an answer.

    Args:
        limits: Of the service.
        asked: Tokens that the request asks for, if it says.
        param: The parameter that says it.

    Raises:
        InvalidParameter: It asks for more than the service makes.
    """
    most = limits.max_output_tokens
    if most is not None and asked is not None and asked > most:
        text = f"{asked} tokens are asked for, and this service makes at most {most}; lower it, or leave it out"
        raise InvalidParameter(param, f"{param}: {text}")


async def within(items: AsyncGenerator[_Item, None], *, seconds: float) -> AsyncGenerator[_Item, None]:
    """The items, as long as they all come in time; what they are made from is closed in any case.

    Raises:
        RequestTimedOut: They did not.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    async with aclosing(items):
        while True:
            try:
                item = await _until(deadline, anext(items), seconds)
            except StopAsyncIteration:
                return
            yield item


async def in_time(work: Awaitable[_Item], *, seconds: float) -> _Item:
    """What `work` gives, which is cancelled when it takes longer.

    Raises:
        RequestTimedOut: It did.
    """
    return await _until(asyncio.get_running_loop().time() + seconds, work, seconds)


async def _until(deadline: float, work: Awaitable[_Item], seconds: float) -> _Item:
    try:
        async with asyncio.timeout_at(deadline) as patience:
            return await work
    except TimeoutError:
        if not patience.expired():
            raise
        raise timed_out(seconds) from None


def timed_out(seconds: float) -> RequestTimedOut:
    """What is said of a request that took longer than it may."""
    return RequestTimedOut(
        f"the request took more than the {seconds:g} s that it may; ask for fewer tokens, or try later"
    )
