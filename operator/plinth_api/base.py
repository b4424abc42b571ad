"""What every API model shares: camelCase on the wire, frozen, unknown fields refused, and rules that are checked twice.

A rule is written once, here in Python terms, and becomes both a pydantic check (laptop, operator) and a CEL rule in the
CRD (API server), so that `kubectl apply` and `plinth validate` refuse the same files.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition over several fields of one model.

    Attributes:
        cel: The condition for the API server (CEL over `self`).
        check: The same condition in Python; true when the model is fine.
        message: One sentence for the user; it also goes into the CRD.
    """

    cel: str
    check: Callable[[Any], bool]
    message: str


def exactly_one_of(*fields: str) -> Rule:
    """A rule that exactly one of `fields` (names on the wire) is set."""
    return _count_rule(fields, "== 1", lambda count: count == 1, f"exactly one of {', '.join(fields)} must be set")


def at_most_one_of(*fields: str) -> Rule:
    """A rule that at most one of `fields` (names on the wire) is set."""
    return _count_rule(fields, "<= 1", lambda count: count <= 1, f"at most one of {', '.join(fields)} may be set")


def _count_rule(fields: tuple[str, ...], comparison: str, accepts: Callable[[int], bool], message: str) -> Rule:
    def check(model: BaseModel) -> bool:
        by_wire_name = {wire_name(type(model), name): name for name in type(model).model_fields}
        return accepts(sum(getattr(model, by_wire_name[field]) is not None for field in fields))

    present = " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields)
    return Rule(cel=f"{present} {comparison}", check=check, message=message)


def wire_name(model: type[BaseModel], field: str) -> str:
    """The camelCase name under which `field` of `model` travels."""
    return model.model_fields[field].alias or field


class ApiModel(BaseModel):
    """Base of everything that is read from YAML or written to it."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        strict=True,
        ser_json_inf_nan="strings",
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _follow_rules(self) -> Self:
        for rule in self.rules:
            if not rule.check(self):
                raise PydanticCustomError("rule", "{message}", {"message": rule.message})
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        if cls.rules:
            handler.resolve_ref_schema(schema)["x-kubernetes-validations"] = [
                {"rule": rule.cel, "message": rule.message} for rule in cls.rules
            ]
        return schema

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """From what `to_wire` gives, also once it has been through something that makes lists of tuples.

        Raises:
            ValidationError: It is not that.
        """
        return cls.model_validate_json(json.dumps(wire))

    def to_wire(self) -> dict[str, Any]:
        """The model as plain JSON types with wire names, without the fields that are not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_OBJECT_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
_MODEL_NAME = r"^[A-Za-z0-9]([-A-Za-z0-9_]*[A-Za-z0-9])?$"

PATTERN_WORDS = {
    _NAME: "must hold lower case letters, digits and '-' only, with a letter or digit at both ends",
    _OBJECT_NAME: "must hold lower case letters, digits, '-' and '.' only, with a letter or digit at both ends",
    _MODEL_NAME: "must hold letters, digits, '-' and '_' only, with a letter or digit at both ends",
}
"""What a text that misses one of these patterns is told."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=_NAME)]
"""A DNS-1123 label, as Kubernetes names objects."""

ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=_OBJECT_NAME)]
"""A DNS-1123 subdomain: the name of a Secret, a PersistentVolumeClaim, a class."""

LabelName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=_OBJECT_NAME)]
"""The name of an object that others find by a label, which has at most 63 characters."""

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=_MODEL_NAME)]
"""A registered model's name, without the namespace that the platform puts before it."""

ShortText = Annotated[str, StringConstraints(min_length=1, max_length=253)]
"""One line of free text."""

LongText = Annotated[str, StringConstraints(max_length=32768)]
"""Free text of up to 32 KiB."""

_QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"


def _one_quantity_error(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        raise PydanticCustomError("quantity", 'must be a quantity: 8, "500m", 96Gi') from None


Quantity = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[str, StringConstraints(max_length=32, pattern=_QUANTITY)],
    WrapValidator(_one_quantity_error),
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]
"""A Kubernetes resource quantity: 8, "500m", 96Gi."""

FreeForm = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""An object whose fields the schema does not know."""


class SecretRef(ApiModel):
    """A Secret of the same namespace."""

    name: ObjectName = Field(
        description="name of the Secret; all its keys become environment variables of the workload."
    )


class StatusModel(ApiModel):
    """Base of what the operator writes and reads again; fields that another version of it wrote are passed over."""

    model_config = ConfigDict(extra="ignore")


class Condition(StatusModel):
    """One observation of a resource's state (metav1.Condition)."""

    type: ShortText = Field(description="type of the condition, in CamelCase.")
    status: Literal["True", "False", "Unknown"] = Field(description="status of the condition.")
    reason: ShortText = Field(description="reason for the last transition, in CamelCase.")
    message: LongText = Field(description="message for people: what, where, and what to do about it.")
    last_transition_time: datetime = Field(description="lastTransitionTime is when the status last changed.")
    observed_generation: int | None = Field(
        default=None,
        ge=0,
        description="observedGeneration is the metadata.generation that the condition was computed for.",
    )


class ObjectMeta(ApiModel):
    """The part of an object's metadata that Plinth reads; the API server owns the rest."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(description="name of the object.")
    namespace: str | None = Field(default=None, description="namespace of the object.")
    uid: str | None = Field(default=None, description="uid given by the API server.")
    generation: int | None = Field(default=None, description="generation counts the changes of the spec.")
    labels: dict[str, str] | None = Field(default=None, description="labels of the object.")
    annotations: dict[str, str] | None = Field(default=None, description="annotations of the object.")
