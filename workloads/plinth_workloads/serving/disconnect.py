"""Work for a client that may go away: a request and what it waits for enter, the result leaves, or nothing is done."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

_Result = TypeVar("_Result")


class ClientGone(Exception):
    """Nobody waits for the answer."""


async def unless_gone(request: Request, work: Awaitable[_Result]) -> _Result:
    """The result of `work`, which is cancelled when the client closes the connection.

    Raises:
        ClientGone: It did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_wait_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
