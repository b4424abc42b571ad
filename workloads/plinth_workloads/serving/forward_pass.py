"""Which texts are computed together: lengths by request enter, the rows of the next forward pass leave.

Apart from the engine because it decides alone who waits for whom, and how much of a pass is padding.
"""

from collections.abc import Sequence

_PADDING_SHARE = 0.25
"""Of the tokens of a full pass. A pass that is not full may have as many: another one would cost more."""


def next_pass(lengths: Sequence[Sequence[int]], max_tokens: int) -> list[tuple[int, int]]:
    """The rows of the next pass: requests give one each in turn, so that a small one does not wait for a large one.

    Args:
        lengths: Of the texts of each request that still wait, longest first. The request whose turn it is comes first,
            and none is empty.
        max_tokens: Of a pass, padding included; a longer text is computed alone.

    Returns:
        Request and place in it, of each row; the first request's first row is always among them.
    """
    taken: list[tuple[int, int]] = []
    places = dict.fromkeys(range(len(lengths)), 0)
    longest, total = 0, 0
    while places:
        for request in list(places):
            place = places[request]
            length = lengths[request][place]
            size = max(longest, length) * (len(taken) + 1)
            padding = size - total - length
            if not taken or (size <= max_tokens and padding <= _PADDING_SHARE * max_tokens):
                taken.append((request, place))
                longest, total = max(longest, length), total + length
            elif length <= longest:
                # What follows in this request is shorter, and needs as much room and more padding.
                del places[request]
                continue
            places[request] += 1
            if places[request] == len(lengths[request]):
                del places[request]
    return taken
