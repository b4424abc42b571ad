"""What is done again and again in a thread of its own while a test does something else."""

import threading
from typing import Self


class Repeating:
    """Does `once` until the end of the block.

    Attributes:
        pause_seconds: Before each time.
    """

    pause_seconds: float

    def once(self) -> None:
        """What is done again and again."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._ended.wait(self.pause_seconds):
            self.once()
