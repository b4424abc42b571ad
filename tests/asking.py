"""A client that asks one question after the other while something else happens, and keeps what failed."""

import threading
from collections.abc import Callable
from typing import Self

import openai


class Asking:
    """Asks in a thread of its own until the end of the block.

    Args:
        ask: One question; returns the answer.
        pause_seconds: Between an answer and the next question.
    """

    def __init__(self, ask: Callable[[], str], *, pause_seconds: float) -> None:
        self._ask, self._pause_seconds = ask, pause_seconds
        self._ended = threading.Event()
        self.answers: list[str] = []
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._ask_on, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _ask_on(self) -> None:
        while not self._ended.wait(self._pause_seconds):
            try:
                self.answers.append(self._ask())
            except openai.OpenAIError as error:
                self.failures.append(f"{type(error).__name__}: {error}")
