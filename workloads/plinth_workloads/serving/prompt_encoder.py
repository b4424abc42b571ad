"""From text and chats to token ids."""

import copy
import threading
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from plinth_workloads.serving.engine import ChatMessage, InvalidPrompt


class PromptEncoder:
    """Encodes in any thread, while another decodes with `tokenizer`.

    Attributes:
        tokenizer: For decoding, by one thread.
        first_id: The token that a text without tokens begins with, if the model has one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        self.first_id: int | None = next((token for token in candidates if token is not None), None)
        # A fast tokenizer used by two threads may raise "Already borrowed": a copy, and one encoder at a time.
        # https://github.com/huggingface/tokenizers/issues/537
        self._encoding_tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """See Engine."""
        with self._lock:
            ids: list[int] = self._encoding_tokenizer(text, truncation=False, verbose=False)["input_ids"]
        if ids:
            return ids
        if self.first_id is None:
            raise InvalidPrompt("the prompt is empty, and the model has no token to begin with")
        return [self.first_id]

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """See Engine."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        with self._lock:
            if not self._encoding_tokenizer.chat_template:
                raise InvalidPrompt("this model has no chat template; use /v1/completions")
            try:
                text = self._encoding_tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            except (TemplateError, ValueError) as error:
                raise InvalidPrompt(f"the model's chat template refuses these messages: {error}") from error
            # The template has written the special tokens itself.
            encoded = self._encoding_tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)
        ids: list[int] = encoded["input_ids"]
        if not ids:
            raise InvalidPrompt("the chat is empty once the model's chat template is applied")
        return ids
