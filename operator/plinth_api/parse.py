"""From the JSON form of a resource to its typed model, with messages that name the field and say what to do."""

import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from plinth_api.base import wire_name
from plinth_api.common import PATTERN_WORDS
from plinth_api.errors import InvalidSpec, Problem
from plinth_api.fine_tune_job import FineTuneJob
from plinth_api.lenient import read_leniently
from plinth_api.model_service import ModelService
from plinth_api.pretrain_job import PretrainJob

Resource = PretrainJob | FineTuneJob | ModelService
Job = PretrainJob | FineTuneJob

API_VERSION = "plinth.dev/v1alpha1"
KINDS: Mapping[str, type[PretrainJob] | type[FineTuneJob] | type[ModelService]] = {
    "PretrainJob": PretrainJob,
    "FineTuneJob": FineTuneJob,
    "ModelService": ModelService,
}

_MAX_SHOWN = 80


def parse_resource(document: object) -> Resource:
    """The typed resource.

    What the API server takes is taken: a null counts as left out, and 1e9 is a whole number.

    Args:
        document: The resource as JSON types, as the API server or a YAML file gives it.

    Raises:
        InvalidSpec: With a problem for each field that is wrong.
    """
    if not isinstance(document, Mapping):
        raise InvalidSpec(Problem("", f"must be an object with apiVersion, kind and spec, not {_shown(document)}"))
    plain = json.loads(json.dumps(document, default=str))
    api_version, kind = plain.get("apiVersion"), plain.get("kind")
    if api_version != API_VERSION:
        raise InvalidSpec(Problem("apiVersion", _must_be(API_VERSION, api_version)))
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidSpec(Problem("kind", _must_be(f"one of {', '.join(KINDS)}", kind)))
    infinite = [Problem(path, "must be a finite number") for path in _not_finite(plain)]
    if infinite:
        raise InvalidSpec(*infinite)
    model = KINDS[kind]
    try:
        return model.model_validate_json(json.dumps(_as_stored(model, plain)), by_name=False)
    except ValidationError as error:
        raise InvalidSpec(*_problems(model, error)) from None


def readable_part(document: Mapping[str, Any]) -> Resource | None:
    """The resource without the fields that are wrong, to go on with what it started; None where too little is left.

    Args:
        document: A resource of ours that the API server has taken.
    """
    model = KINDS[document["kind"]]
    return read_leniently(model, _as_stored(model, dict(document)))


def path_of(location: Sequence[str | int]) -> str:
    """`spec.data.train[0].uri` from its parts."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models named in an annotation, inside `X | None`, `tuple[X, ...]` and `Annotated[X, ...]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in typing.get_args(annotation) for model in models_in(argument)]


def fields_by_wire_name(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of `model` under the names that YAML has for them."""
    return {wire_name(model, name): field for name, field in model.model_fields.items()}


def _as_stored(model: type[BaseModel], value: Any) -> Any:
    """`value` as an API server would hold it: without nulls, and with 1000.0 as 1000 where a whole number belongs."""
    if isinstance(value, list):
        return [_as_stored(model, item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = fields_by_wire_name(model)
    return {
        key: _field_as_stored(fields[key], item) if key in fields else item
        for key, item in value.items()
        if item is not None or key not in fields
    }


def _field_as_stored(field: FieldInfo, value: Any) -> Any:
    nested = models_in(field.annotation)
    if nested:
        return _as_stored(nested[0], value)
    if isinstance(value, float) and value.is_integer() and _has_type(field.annotation, int):
        return int(value)
    if isinstance(value, list) and _has_type(field.annotation, int):
        return [int(item) if isinstance(item, float) and item.is_integer() else item for item in value]
    return value


def _has_type(annotation: Any, wanted: type) -> bool:
    return annotation is wanted or any(_has_type(argument, wanted) for argument in typing.get_args(annotation))


def _not_finite(value: Any, *location: str | int) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path_of(location)
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in parts:
        yield from _not_finite(item, *location, key)


def _problems(model: type[BaseModel], error: ValidationError) -> list[Problem]:
    details = error.errors(include_url=False)
    places = [detail["loc"] for detail in details]
    return [
        Problem(path_of(detail["loc"]), _sentence(model, detail["loc"], detail))
        for detail in details
        if not (detail["type"] == "too_short" and _any_inside(detail["loc"], places))
    ]


def _any_inside(outer: Sequence[str | int], places: Iterable[Sequence[str | int]]) -> bool:
    """Whether one of `places` lies inside `outer`: pydantic calls a list with a wrong item too short as well."""
    return any(len(place) > len(outer) and place[: len(outer)] == outer for place in places)


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "tuple_type": "a list",
}
"""What is wanted where a value has the wrong type, by pydantic's name of the error."""

_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
}


def _sentence(model: type[BaseModel], location: Sequence[str | int], detail: ErrorDetails) -> str:
    kind, value, context = detail["type"], detail.get("input"), detail.get("ctx", {})
    if kind in _WANTED:
        return _must_be(_WANTED[kind], value)
    if kind in _BOUNDS:
        return _must_be(_BOUNDS[kind].format_map(context).replace("'", "").removesuffix(".0"), value)
    match kind:
        case "extra_forbidden":
            return _unknown_field(model, location)
        case "missing":
            return "is required"
        case "rule":
            return detail["msg"]
        case "quantity":
            hint = f'; write "{value}"' if isinstance(value, float) else ""
            return f"{detail['msg']}, not {_shown(value)}{hint}"
        case "string_pattern_mismatch":
            return f"{PATTERN_WORDS[context['pattern']]}, not {_shown(value)}"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case "too_long":
            return f"must have at most {context['max_length']} items"
        case _:
            return f"{detail['msg'][0].lower()}{detail['msg'][1:]}"


def _unknown_field(model: type[BaseModel], location: Sequence[str | int]) -> str:
    known = fields_by_wire_name(_model_at(model, location[:-1]))
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"unknown field; did you mean {close[0]}?"
    return f"unknown field; known fields: {', '.join(sorted(known))}" if known else "unknown field; it has no fields"


def _model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel]:
    """The model that lies at `location` inside `model`."""
    for part in location:
        if isinstance(part, str):
            model = models_in(fields_by_wire_name(model)[part].annotation)[0]
    return model


def _must_be(wanted: str, value: object) -> str:
    return f"must be {wanted}, not {_shown(value)}" if value is not None else f"must be {wanted}"


def _shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
