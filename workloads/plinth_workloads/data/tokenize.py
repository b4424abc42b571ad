"""From examples to token ids, with a mark on the tokens that the model is to learn.

Text is learned whole; of a chat only the assistant's turns, of a pair only the completion.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from plinth_workloads.data.formats import Example, Message
from plinth_workloads.data.token_store import TokenizedDocument
from plinth_workloads.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 512

Span = tuple[int, int]


def tokenize_examples(
    examples: Iterable[Example], tokenizer: "PreTrainedTokenizerBase", *, as_chat: bool
) -> Iterator[TokenizedDocument]:
    """Token ids of each example, an end-of-text token last.

    Args:
        examples: Texts, chats or pairs.
        tokenizer: A fast tokenizer.
        as_chat: Render a pair as a chat of two turns, where the tokenizer has a chat template.

    Raises:
        UserError: InvalidData for a chat that the tokenizer's template cannot render.
    """
    remaining = iter(examples)
    while chunk := list(islice(remaining, _CHUNK)):
        yield from tokenize_rendered([_render(example, tokenizer, as_chat=as_chat) for example in chunk], tokenizer)


def tokenize_rendered(
    rendered: Sequence[tuple[str, Sequence[Span] | None]], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[TokenizedDocument]:
    """Token ids of each text, an end-of-text token last; targets are what touches its spans, None for all of it."""
    encoded = tokenizer([text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True)
    for (_, spans), ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        yield _document(ids, offsets, spans, tokenizer.eos_token_id)


def _document(ids: list[int], offsets: Sequence[Span], spans: Sequence[Span] | None, eos: int) -> TokenizedDocument:
    ends_itself = bool(ids) and ids[-1] == eos
    ids = ids if ends_itself else [*ids, eos]
    if spans is None:
        return TokenizedDocument(ids)
    # A token that holds the end of the context and the start of the answer is learned: the answer needs it.
    targets = [any(end > start and begin < stop for start, stop in spans) for begin, end in offsets]
    if not ends_itself:
        targets.append(bool(targets) and targets[-1])
    return TokenizedDocument(ids, targets)


def _render(example: Example, tokenizer: "PreTrainedTokenizerBase", *, as_chat: bool) -> tuple[str, list[Span] | None]:
    """The example as one text, and which spans of it are targets; None for all of it."""
    if example.text is not None:
        return example.text, None
    if example.messages:
        return render_chat(example.messages, tokenizer)
    if as_chat and tokenizer.chat_template:
        turns = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.completion}]
        return render_chat(turns, tokenizer)
    text = example.prompt + example.completion
    return text, [(len(example.prompt), len(text))]


def render_chat(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> tuple[str, list[Span]]:
    """A chat as one text, and which spans of it are the assistant's.

    Raises:
        UserError: InvalidData where the tokenizer's template cannot render it.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "InvalidData",
            "the model's tokenizer has no chat template, so chats cannot be rendered; start from a model that has one, "
            "or use prompt and completion columns",
        )
    spans = []
    whole = _apply(messages, tokenizer)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _apply(messages[:index], tokenizer, add_generation_prompt=True)
        after = _apply(messages[: index + 1], tokenizer)
        if not (after.startswith(before) and whole.startswith(after)):
            raise UserError(
                "InvalidData",
                "the model's chat template renders earlier turns differently once later ones follow, so the answer's "
                "tokens cannot be told apart; use a tokenizer whose template only appends",
            )
        spans.append((len(before), len(after)))
    return whole, spans


def _apply(
    messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", *, add_generation_prompt: bool = False
) -> str:
    try:
        rendered: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, ValueError, KeyError) as error:
        raise UserError("InvalidData", f"the model's chat template refuses a chat: {error}") from error
    return rendered
