"""What another version of Plinth has written, as far as this one understands it.

An operator is updated and rolled back while jobs run: a status with a word that it does not know, or a spec with a
field that it has no more, must not keep it from watching them.
"""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

M = TypeVar("M", bound=BaseModel)


def read_leniently(model: type[M], document: Any) -> M | None:
    """The model without what cannot be read of it; None where nothing is left that could be.

    Args:
        model: What to read.
        document: JSON types; left as it is.
    """
    text = json.dumps(document, default=str)
    while True:
        try:
            return model.model_validate_json(text, by_name=False)
        except ValidationError as error:
            plain = json.loads(text)
            if not _drop(plain, error.errors(include_url=False, include_context=False)[0]):
                return None
            text = json.dumps(plain)


def _drop(plain: Any, error: ErrorDetails) -> bool:
    """Take out what is wrong, or what lacks a field; whether there was anything to take out."""
    place = error["loc"][:-1] if error["type"] == "missing" else error["loc"]
    if not place:
        return False
    for part in place[:-1]:
        plain = plain[part]
    del plain[place[-1]]
    return True
