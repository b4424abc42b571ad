"""Every field of a kind's spec with its path, for what has to speak of all of them: the reference and the tests."""

import typing
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from plinth_api.parse import KINDS, fields_by_wire_name, models_in


@dataclass(frozen=True, slots=True)
class ApiField:
    """One field of a kind.

    Attributes:
        path: Where it lies; `[]` stands for any item of a list: `spec.data.train[].uri`.
        block: The model that has the field.
        info: What pydantic knows about it.
        nested: The model of its value, or of the items of its value; None for a leaf.
        is_list: Whether its value is a list.
    """

    path: str
    block: type[BaseModel]
    info: FieldInfo
    nested: type[BaseModel] | None
    is_list: bool


def fields_of(kind: str, part: str = "spec") -> Iterator[ApiField]:
    """The fields below `spec` (or `status`) of a kind, each block before the fields inside it."""
    root = models_in(fields_by_wire_name(KINDS[kind])[part].annotation)[0]
    return _fields_below(root, part)


def _fields_below(block: type[BaseModel], path: str) -> Iterator[ApiField]:
    for name, info in fields_by_wire_name(block).items():
        nested = next(iter(models_in(info.annotation)), None)
        is_list = _is_list(info.annotation)
        yield ApiField(f"{path}.{name}", block, info, nested, is_list)
        if nested is not None:
            yield from _fields_below(nested, f"{path}.{name}[]" if is_list else f"{path}.{name}")


def _is_list(annotation: object) -> bool:
    return typing.get_origin(annotation) is tuple or any(map(_is_list, typing.get_args(annotation)))
