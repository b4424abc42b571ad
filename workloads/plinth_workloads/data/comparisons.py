"""From rows to comparisons of two answers, and from those to tokens: what a preference is learned from.

A row is a prompt with a chosen and a rejected answer, as texts or as chats. In the token store it is one document:
prompt and chosen answer, then prompt and rejected answer. The targets are the answers. The first token of either half
is never one, as nothing stands before it; so the second half starts where targets end.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from plinth_api.run import RunData, RunSource
from plinth_workloads.data.formats import Message, column_of, find_column
from plinth_workloads.data.token_store import TokenizedDocument
from plinth_workloads.data.tokenize import Span, render_chat, tokenize_rendered
from plinth_workloads.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Comparison:
    """A context, a text or the turns of a chat, with an answer that is preferred to another."""

    context: str | Sequence[Message]
    chosen: str
    rejected: str


class _BadRow(Exception):
    def __init__(self, column: str, sentence: str) -> None:
        super().__init__(sentence)
        self.column, self.sentence = column, sentence


def read_comparisons(rows: "Dataset", source: RunSource, data: RunData) -> Iterator[Comparison]:
    """The comparisons of one source, in the order of its rows.

    Raises:
        UserError: InvalidData, with the source, the row and the column, for what cannot be compared.
    """
    columns = {key: column_of(key, rows.column_names, source.uri, data.columns) for key in ("chosen", "rejected")}
    if "prompt" in data.columns or find_column("prompt", rows.column_names, data.columns):
        columns["prompt"] = column_of("prompt", rows.column_names, source.uri, data.columns)
    for number, row in enumerate(rows.select_columns(list(columns.values())), start=1):
        values = {key: row[column] for key, column in columns.items()}
        try:
            yield _comparison(values.get("prompt"), values["chosen"], values["rejected"])
        except _BadRow as bad:
            column = columns.get(bad.column, bad.column)
            raise UserError("InvalidData", f"{source.uri} row {number}, column {column}: {bad.sentence}") from None


def tokenize_comparisons(
    comparisons: Iterable[Comparison], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[TokenizedDocument]:
    """Token ids of each comparison; texts are rendered as chats where the tokenizer has a chat template.

    Raises:
        UserError: InvalidData for a chat that the tokenizer's template cannot render.
    """
    remaining = iter(comparisons)
    while chunk := list(islice(remaining, _CHUNK)):
        rendered = [
            _render(comparison.context, answer, tokenizer)
            for comparison in chunk
            for answer in (comparison.chosen, comparison.rejected)
        ]
        documents = tokenize_rendered(rendered, tokenizer)
        for chosen, rejected in zip(documents, documents, strict=True):
            yield TokenizedDocument([*chosen.ids, *rejected.ids], [*_answer(chosen), *_answer(rejected)])


def border_of(targets: npt.NDArray[np.bool_]) -> int:
    """Where in a comparison's document the half of the rejected answer starts."""
    return int(np.argmax(targets[:-1] & ~targets[1:])) + 1


def _answer(document: TokenizedDocument) -> list[bool]:
    """The targets of one half: the answer and all behind it, but no first token."""
    assert document.targets is not None
    length = len(document.targets)
    start = document.targets.index(True) if any(document.targets) else length - 1
    context = max(1, start)
    return [False] * context + [True] * (length - context)


def _render(
    context: str | Sequence[Message], answer: str, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[str, list[Span]]:
    """One half as text, and the span of its answer."""
    if isinstance(context, str):
        if not tokenizer.chat_template:
            return context + answer, [(len(context), len(context) + len(answer))]
        context = [{"role": "user", "content": context}]
    text, spans = render_chat([*context, {"role": "assistant", "content": answer}], tokenizer)
    return text, spans[-1:]


def _comparison(prompt: Any, chosen: Any, rejected: Any) -> Comparison:
    for column, answer in (("chosen", chosen), ("rejected", rejected)):
        if _is_empty(answer):
            raise _BadRow(column, "is empty; a row needs a chosen and a rejected answer, give it one or take it out")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if _is_empty(prompt):
            raise _BadRow("prompt", "is empty; give the text that both answers answer")
        context = prompt if isinstance(prompt, str) else _turns("prompt", prompt)
        comparison = Comparison(context, chosen, rejected)
    else:
        comparison = _from_chats(prompt, _turns("chosen", chosen), _turns("rejected", rejected))
    if comparison.chosen == comparison.rejected:
        raise _BadRow("rejected", "is the chosen answer once more; give another answer, or take the row out")
    return comparison


def _from_chats(prompt: Any, chosen: list[Message], rejected: list[Message]) -> Comparison:
    """A comparison of chats that differ in their last turn; `prompt` may stand before them or be their beginning."""
    opening: list[Message] = []
    if isinstance(prompt, str) and chosen[0]["role"] == "assistant":
        opening = [{"role": "user", "content": prompt}]
    elif prompt and not isinstance(prompt, str):
        opening = _turns("prompt", prompt)
        opening = [] if chosen[: len(opening)] == opening else opening
    contexts = [[*opening, *chat[:-1]] for chat in (chosen, rejected)]
    for column, chat in (("chosen", chosen), ("rejected", rejected)):
        if chat[-1]["role"] != "assistant" or _is_empty(chat[-1]["content"]):
            raise _BadRow(column, "must end with an answer of the assistant")
    if contexts[0] != contexts[1]:
        raise _BadRow("rejected", "differs from the chosen chat before the last turn; only the last answers may differ")
    if not contexts[0]:
        raise _BadRow("prompt", "is empty; give the turns that both answers answer")
    return Comparison(contexts[0], chosen[-1]["content"], rejected[-1]["content"])


def _is_empty(value: Any) -> bool:
    return not (value.strip() if isinstance(value, str) else value)


def _turns(column: str, value: Any) -> list[Message]:
    if not isinstance(value, list) or not all(_is_turn(turn) for turn in value):
        raise _BadRow(
            column,
            f"is {type(value).__name__}, must be text like the others or a list of messages with role and content",
        )
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
