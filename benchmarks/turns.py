"""Sides of a comparison that take turns, so that what else the machine does meets all of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def take_turns(blocks: Mapping[str, Callable[[int], _T]], rounds: int, steps: int) -> dict[str, list[_T]]:
    """What each side's blocks of `steps` steps return, by round, after one round that warms up and compiles."""
    found: dict[str, list[_T]] = {side: [] for side in blocks}
    sides = list(blocks)
    for turn in range(-1, rounds):
        for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
            returned = blocks[side](steps)
            if turn >= 0:
                found[side].append(returned)
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """One side's figures over another's of the same rounds."""
    return [one / other for one, other in zip(above, below, strict=True)]
