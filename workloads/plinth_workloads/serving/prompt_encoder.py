"""From text and chats to token ids."""

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from plinth_workloads.serving.chat_turns import Turn, template_turn
from plinth_workloads.serving.engine import ChatMessage, InvalidParameter, InvalidPrompt, NoChatTemplate


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

    def encode_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """See Engine."""
        turns = [template_turn(message) for message in messages]
        with self._lock:
            if not self._encoding_tokenizer.chat_template:
                raise NoChatTemplate("this model has no chat template; use /v1/completions")
            try:
                text = self._rendered(turns, tools)
                param = self._passed_over(text, turns, tools)
            except (TemplateError, ValueError) as error:
                raise InvalidPrompt(f"the model's chat template refuses these messages: {error}") from error
            if param is not None:
                raise InvalidParameter(param, f"{param}: the model's chat template knows no tools; leave them out")
            # The template has written the special tokens itself.
            encoded = self._encoding_tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)
        ids: list[int] = encoded["input_ids"]
        if not ids:
            raise InvalidPrompt("the chat is empty once the model's chat template is applied")
        return ids

    def _rendered(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> str:
        text: str = self._encoding_tokenizer.apply_chat_template(
            list(turns), tools=list(tools) or None, tokenize=False, add_generation_prompt=True
        )
        return text

    def _passed_over(self, text: str, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> str | None:
        """The parameter of which nothing is in the text: templates pass over what they do not know."""
        if tools and text == self._rendered(turns, ()):
            return "tools"
        said = [{key: value for key, value in turn.items() if key != "tool_calls"} for turn in turns]
        return "messages" if said != list(turns) and text == self._rendered(said, tools) else None
