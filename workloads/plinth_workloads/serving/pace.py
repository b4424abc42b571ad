"""How often a client is told of its text: with each step where few are answered, with every few steps where many are.

What a piece costs is a wake-up, an event, a write and whatever stands between here and the client, however much text is
in it; and it is taken from the cores, or from the interpreter, that the next step needs. vLLM has the same as
`--stream-interval`, by tokens; by time nobody waits who is alone.
"""

_TOLD_AT_ONCE = 4
"""Rows whose clients see each token."""

_PIECES_PER_SECOND = 200
_LONGEST_PAUSE_SECONDS = 0.1
"""What a reader does not notice."""


def pause_seconds(num_rows: int) -> float:
    """How long a row's text is held back after a piece of it; the first piece and the end of a text never wait.

    Args:
        num_rows: Rows that make text at once.
    """
    return min(num_rows / _PIECES_PER_SECOND, _LONGEST_PAUSE_SECONDS) if num_rows > _TOLD_AT_ONCE else 0.0
