"""From token ids, a few at a time, to text that may be sent: whole characters, nothing that a stop string may claim.

Enters: the ids that a model samples. Leaves: pieces of text that, put together, are the decoded completion.
"""

from collections.abc import Sequence
from typing import Any

_REPLACEMENT = "\ufffd"
_WINDOW_TOKENS = 48
_KEPT_TOKENS = 8
"""At least the bytes of one UTF-8 character (4), and some context for decoders that treat the first token specially."""


class IncrementalDetokenizer:
    """Decodes a growing sequence in time that does not grow with it.

    A byte-level token may be a part of a character; decoded, it is a replacement character until the rest arrives.
    UTF-8 is self-synchronising, so only the last character of a decoded text can still change. A character that is
    still in parts at the end of the completion is left out.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int]) -> None:
        """Begin after `prompt_ids`, whose end decides whether the text starts with a space (SentencePiece)."""
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_sent = 0
        self._shrink(prompt_ids)

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that became certain with these tokens."""
        self._window += token_ids
        new = self._stable_text()[self._num_sent :]
        self._num_sent += len(new)
        if len(self._window) > _WINDOW_TOKENS:
            self._shrink(self._window)
        return new

    def _shrink(self, ids: Sequence[int]) -> None:
        self._window = list(ids[-_KEPT_TOKENS:])
        self._num_sent = len(self._stable_text())

    def _stable_text(self) -> str:
        return self._decode().removesuffix(_REPLACEMENT)

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class StopStrings:
    """Holds text back for as long as it may turn out to be the beginning of a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may be sent, and whether a stop string was found right after it."""
        self._held += text
        matches = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if matches:
            return self._held[: min(matches)], True
        free = len(self._held) - max((num_overlapping(self._held, stop) for stop in self._stop), default=0)
        sent, self._held = self._held[:free], self._held[free:]
        return sent, False

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        rest, self._held = self._held, ""
        return rest


def num_overlapping(text: str, mark: str) -> int:
    """Length of the longest end of `text` with which `mark` begins, but for all of `mark`."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
