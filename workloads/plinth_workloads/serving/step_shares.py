"""How many tokens of each row the next step reads.

Enters: how many tokens each row still has to read, in the order of their coming. Leaves: how many of them now. Rows
that make text have one each in any case; what the step may read beside goes to prompts, so that a long prompt is read
in pieces while the others go on making text.
"""

from collections.abc import Sequence


def shares_in_pieces(pending: Sequence[int], budget: int) -> list[int]:
    """Tokens of each row in the next step.

    Where several prompts wait, the oldest has at most half of what is left, and so on: a long one is never passed over,
    and holds up no short one behind it.

    Args:
        pending: Per row, at least 1; 1 for a row that makes text.
        budget: Tokens of a step; rows that make text have theirs even beyond it.
    """
    prompts = [index for index, count in enumerate(pending) if count > 1]
    shares = [1 if count == 1 else 0 for count in pending]
    left = max(budget - sum(shares), 1)
    for index in prompts:
        shares[index] = min(pending[index], left if index == prompts[-1] else (left + 1) // 2)
        left -= shares[index]
    return shares


def has_room(pending: Sequence[int], budget: int) -> bool:
    """Whether the next step would read a part of one more prompt that is worth it, an eighth of what it may read.

    Prompts are not begun earlier: what is read until then may be their beginning too.
    """
    return shares_in_pieces([*pending, budget], budget)[-1] >= max(1, budget // 8)


def shares_whole(pending: Sequence[int], budget: int) -> list[int]:
    """The same for rows whose prompts are read whole, padded to the longest: as many as fit, at least one."""
    shares = [1 if count == 1 else 0 for count in pending]
    longest, taken = 0, 0
    for index, count in enumerate(pending):
        if count == 1:
            continue
        longest = max(longest, count)
        if taken and longest * (taken + 1) > budget:
            break
        shares[index] = count
        taken += 1
    return shares
