"""How OpenAI's and vLLM's clients say what a text has to look like (`response_format`, `structured_outputs`).

Enters: JSON. Leaves: a StructuredOutput, or an error that names the parameter. It stands alone because chats and
completions both have it, and no engine is asked for it here.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from plinth_workloads.serving.engine import InvalidParameter, StructuredOutput

MAX_CHOICE_TEXTS = 1024

JSON_OPTIONS: Mapping[str, Any] = {"whitespace_flexible": True, "whitespace_pattern": r"[ \t\n\r]{0,40}"}
"""llguidance's, of the text between the parts of JSON: enough of it to indent, and not so much that a model could say
nothing else forever."""

_ANY_OBJECT: dict[str, Any] = {"type": "object"}


class JsonSchemaBody(BaseModel):
    """A schema under a name; `strict` changes nothing, as every schema is kept to."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormatBody(BaseModel):
    """OpenAI's `response_format` (https://platform.openai.com/docs/guides/structured-outputs)."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None

    @model_validator(mode="after")
    def _require_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise PydanticCustomError("json_schema", "type json_schema and the field json_schema need each other")
        return self

    @property
    def structure(self) -> StructuredOutput | None:
        """What the text has to look like; None for any."""
        if self.type == "text":
            return None
        schema = _ANY_OBJECT if self.json_schema is None else self.json_schema.schema_
        return StructuredOutput("json_schema", json.dumps(schema), "response_format")


class StructuredOutputsBody(BaseModel):
    """vLLM's `structured_outputs` (https://docs.vllm.ai/en/latest/features/structured_outputs.html)."""

    model_config = ConfigDict(extra="forbid")

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: (
        Annotated[
            tuple[Annotated[str, Field(min_length=1)], ...],
            Field(min_length=1, max_length=MAX_CHOICE_TEXTS),
        ]
        | None
    ) = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        if sum(value is not None for value in (self.json_, self.regex, self.choice, self.grammar)) != 1:
            raise PydanticCustomError("structured_outputs", "must have exactly one of json, regex, choice and grammar")
        return self

    @property
    def structure(self) -> StructuredOutput:
        """What the text has to look like."""
        param = "structured_outputs"
        if self.regex is not None:
            return StructuredOutput("regex", self.regex, param)
        if self.grammar is not None:
            return StructuredOutput("grammar", self.grammar, param)
        if self.choice is not None:
            return StructuredOutput("choice", json.dumps(self.choice), param)
        return StructuredOutput("json_schema", json.dumps(self.json_), param)


def structure_of(
    response_format: ResponseFormatBody | None, structured_outputs: StructuredOutputsBody | None
) -> StructuredOutput | None:
    """What a request's text has to look like; None for any.

    Raises:
        InvalidParameter: It says so twice.
    """
    of_format = response_format.structure if response_format is not None else None
    if structured_outputs is None:
        return of_format
    if of_format is not None:
        param = "structured_outputs"
        raise InvalidParameter(param, f"{param} and response_format both say what the text looks like; leave one out")
    return structured_outputs.structure
