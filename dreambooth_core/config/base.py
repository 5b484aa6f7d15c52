"""Base class and shared field types of all config sections."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dreambooth_core.config.credentials import PUBLIC, check_public
from dreambooth_core.config.old_keys import with_new_keys

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
Amount = Annotated[int, Field(ge=0, le=10**9)]
Large = Annotated[int, Field(ge=1, le=10**12)]
Minutes = Annotated[float, Field(gt=0, le=525_600)]
"""At most one year."""
Address = Annotated[str, Field(json_schema_extra={"pattern": PUBLIC})]
"""URL of a server or a store, without credentials (see `credentials.check_public`)."""
Rate = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=100)]
NonEmpty = Annotated[str, Field(min_length=1, max_length=1000)]
Prompts = Annotated[tuple[str, ...], Field(min_length=1)]


def as_name(word: str) -> str:
    """`word` with characters outside `NAME` replaced by hyphens; empty if none is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-._")[:64]


def in_order(schema: dict[str, Any]) -> None:
    """Set `position` for Prefect's forms, which sort by name otherwise: required fields first."""
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    names = [*required, *(name for name in properties if name not in required)]
    for position, name in enumerate(names):
        properties[name]["position"] = position


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        json_schema_extra=in_order,
    )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, but an unknown field in `update` raises `TypeError` instead of being kept."""
        if unknown := (update or {}).keys() - type(self).model_fields:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        return super().model_copy(update=update, deep=deep)

    @model_validator(mode="before")
    @classmethod
    def _rename_keys_and_refuse_credentials(cls, given: object) -> object:
        if isinstance(given, Mapping):
            given = with_new_keys(cls.__name__, given)
            name = _snake_case(cls.__name__)
            check_public("" if name == "config" else name, given, cls.model_fields)
        return given

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_boolean_numbers(cls, given: object, info: ValidationInfo) -> object:
        """Refuse `true` (`yes`, `on` in YAML) for a number; pydantic would convert it to 1."""
        if isinstance(given, bool):
            kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
            if bool not in kinds and kinds & {int, float}:
                raise ValueError("must be a number, which true, false, yes and no are not")
        return given


def _snake_case(name: str) -> str:
    """`TextualInversion` -> `textual_inversion`, the section's key."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _kinds(annotation: Any) -> set[Any]:
    """The annotation and all annotations nested in it."""
    try:
        own = {annotation}
    except TypeError:  # an argument of `Annotated` that cannot be hashed
        own = set()
    return own.union(*map(_kinds, get_args(annotation)))
