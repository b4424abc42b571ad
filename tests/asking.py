"""A client that asks one question after the other while something else happens, and keeps what failed."""

from collections.abc import Callable

import openai

from repeating import Repeating


class Asking(Repeating):
    """Asks until the end of the block.

    Args:
        ask: One question; returns the answer.
        pause_seconds: Between an answer and the next question.
    """

    def __init__(self, ask: Callable[[], str], *, pause_seconds: float) -> None:
        self._ask, self.pause_seconds = ask, pause_seconds
        self.answers: list[str] = []
        self.failures: list[str] = []

    def once(self) -> None:
        """One question."""
        try:
            self.answers.append(self._ask())
        except openai.OpenAIError as error:
            self.failures.append(f"{type(error).__name__}: {error}")
