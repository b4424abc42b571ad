"""From rows to examples: which column holds what, and what of an example the model is to learn.

An example is a list of pieces of text, each marked as context or target.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plinth_api.job import DataFormat
from plinth_api.run import RunData, RunSource
from plinth_workloads.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

Message = Mapping[str, str]
_REQUIRED: dict[DataFormat, tuple[str, ...]] = {
    "text": ("text",),
    "chat": ("messages",),
    "promptCompletion": ("prompt", "completion"),
}
_USUAL_NAMES = {"text": ("text", "content", "document"), "messages": ("messages", "conversations", "conversation")}


@dataclass(frozen=True, slots=True)
class Example:
    """One document: plain `text` all of which is target, or `messages` of which the assistant's are, or a pair."""

    text: str | None = None
    messages: Sequence[Message] = ()
    prompt: str = ""
    completion: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """The parts that a tokenizer can learn from."""
        return (self.text,) if self.text is not None else (self.prompt, self.completion)


def read_examples(rows: "Dataset", source: RunSource, data: RunData) -> Iterator[Example]:
    """The examples of one source, in the order of its rows.

    Raises:
        UserError: InvalidData, with the source and the row, for a column that is missing or a value of a wrong type.
    """
    data_format = data.format or infer_format(rows.column_names, source.uri, data)
    columns = {key: column_of(key, rows.column_names, source.uri, data.columns) for key in _REQUIRED[data_format]}
    parse = _PARSERS[data_format]
    for number, row in enumerate(rows.select_columns(list(columns.values())), start=1):
        values = {key: row[column] for key, column in columns.items()}
        problem = _problem(values)
        if problem is not None:
            raise UserError("InvalidData", f"{source.uri} row {number}, column {columns[problem[0]]}: {problem[1]}")
        yield parse(values)


def infer_format(column_names: Sequence[str], uri: str, data: RunData) -> DataFormat:
    """The format that the columns tell.

    Raises:
        UserError: InvalidData where they tell none that fits the task.
    """
    by_task: dict[str, tuple[DataFormat, ...]] = {
        "pretrain": ("text",),
        "instruction": ("chat", "promptCompletion"),
        "completion": ("promptCompletion", "text"),
        "distillation": ("chat", "promptCompletion", "text"),
    }
    accepted = by_task[data.task]
    for data_format in accepted:
        if all(find_column(key, column_names, data.columns) for key in _REQUIRED[data_format]):
            return data_format
    wanted = " or ".join(" and ".join(_REQUIRED[data_format]) for data_format in accepted)
    raise UserError(
        "InvalidData",
        f"{uri} has the columns {', '.join(column_names)}, task {data.task} needs {wanted}; "
        "name them in spec.data.columns",
    )


def find_column(
    key: str,
    column_names: Sequence[str],
    given: Mapping[str, str],
    usual: Mapping[str, tuple[str, ...]] = _USUAL_NAMES,
) -> str | None:
    """The column that holds `key`: the one that the job names, or one with a usual name; None where there is none."""
    candidates = (given[key],) if key in given else usual.get(key, (key,))
    return next((name for name in candidates if name in column_names), None)


def column_of(key: str, column_names: Sequence[str], uri: str, given: Mapping[str, str]) -> str:
    """The column that holds `key`.

    Raises:
        UserError: InvalidData, with the columns that there are.
    """
    found = find_column(key, column_names, given)
    if found is None:
        raise UserError(
            "InvalidData",
            f"{uri} has no column {given.get(key, key)}; it has {', '.join(column_names)}: name the one to use in "
            f"spec.data.columns.{key}",
        )
    return found


def _problem(values: Mapping[str, Any]) -> tuple[str, str] | None:
    for key, value in values.items():
        if key == "messages":
            if sentence := _messages_problem(value):
                return key, sentence
        elif not isinstance(value, str):
            return key, f"is {'empty' if value is None else type(value).__name__}, must be text"
    return None


def _messages_problem(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "must be a list of messages with role and content"
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            return "every message needs a role and a content, both text"
    if not any(message["role"] == "assistant" for message in messages):
        return "has no message of the assistant to learn from"
    return None


def _parse_chat(values: Mapping[str, Any]) -> Example:
    return Example(
        messages=[{"role": message["role"], "content": message["content"]} for message in values["messages"]]
    )


_PARSERS: dict[DataFormat, Callable[[Mapping[str, Any]], Example]] = {
    "text": lambda values: Example(text=values["text"]),
    "chat": _parse_chat,
    "promptCompletion": lambda values: Example(prompt=values["prompt"], completion=values["completion"]),
}
