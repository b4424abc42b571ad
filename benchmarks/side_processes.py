"""Sides of a comparison in processes of their own: what one leaves behind, threads and memory, meets no other."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

Block = Callable[[int], float]


@contextmanager
def side_processes(make: Callable[..., Block], sides: Sequence[str], *given: Any) -> Iterator[dict[str, Block]]:
    """Per side its block, which runs in the side's process.

    Args:
        make: Importable; is called in each process with the side and what is `given`, and returns the block there.
        sides: Names.
        given: Can be pickled.
    """
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        blocks = {}
        for side in sides:
            here, there = context.Pipe()
            process = context.Process(target=_answer, args=(there, make, side, *given))
            process.start()
            there.close()
            stack.callback(process.join)
            stack.callback(here.send, None)
            blocks[side] = _asking(here)
        yield blocks


def _asking(connection: Connection) -> Block:
    def block(size: int) -> float:
        connection.send(size)
        seconds: float = connection.recv()
        return seconds

    return block


def _answer(connection: Connection, make: Callable[..., Block], side: str, *given: Any) -> None:
    block = make(side, *given)
    while (size := connection.recv()) is not None:
        connection.send(block(size))
