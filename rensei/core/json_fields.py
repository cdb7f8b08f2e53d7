"""
Values of a JSON body whose form is written as a JSON schema, for the OpenAPI document.

The service that takes such a value checks it, and its errors name the place of each fault.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rest_framework import serializers


class JSONDocument(serializers.JSONField):
    """
    A JSON value with a form of its own, which the OpenAPI document shows under `name`.

    `parts` are forms that it refers to, by their names. A form whose objects accept any member gives the reason in its
    description: a test lists them.
    """

    def __init__(
        self, name: str, form: dict[str, Any], *, parts: Mapping[str, dict[str, Any]] | None = None, **options: Any
    ) -> None:
        self.form_name, self.form, self.parts = name, form, parts or {}
        super().__init__(**options)

    def to_internal_value(self, data: Any) -> Any:
        """:raises ValidationError: if it is not an object or a list, where its form is one"""
        kind: Any = {"object": dict, "array": list}.get(self.form.get("type", ""), object)
        if not isinstance(data, kind):
            raise serializers.ValidationError(f"Give {'an object' if kind is dict else 'a list'}.")
        return super().to_internal_value(data)


# For a text that is trimmed and must not be empty.
NOT_BLANK = r"\S"
# For a name that people read: it has a visible character, and no control character.
NAME = {"pattern": r"^[^\u0000-\u001f\u007f-\u009f]*[^\u0000-\u0020\u007f-\u00a0][^\u0000-\u001f\u007f-\u009f]*$"}


class Text(serializers.CharField):
    """A text whose form is a JSON schema, or a function that makes one. The service checks its value."""

    def __init__(self, form: dict[str, Any] | Callable[[], dict[str, Any]], **options: Any) -> None:
        self.form = form
        super().__init__(**options)

    def described(self) -> dict[str, Any]:
        return self.form() if callable(self.form) else self.form


class OneOf(Text):
    """One of some words."""

    def __init__(self, words: Iterable[str], **options: Any) -> None:
        self.words = sorted(words)
        blank = [""] if options.get("allow_blank") else []
        super().__init__({"enum": blank + self.words}, **options)

    def to_internal_value(self, data: Any) -> str:
        if data not in self.words:
            raise serializers.ValidationError(f"One of {', '.join(self.words)}.")
        return super().to_internal_value(data)


def one_of(known: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
    """Describe a name from those that are registered when the document is generated."""
    return lambda: {"enum": sorted(known)}


def whole(pattern: str) -> dict[str, Any]:
    """Describe a text by a pattern for all of it except surrounding white space, which is removed."""
    return {"pattern": rf"^\s*(?:{pattern})\s*$"}


def members(properties: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    """Describe an object that has only these members."""
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": list(properties)} if required else found


def anything(reason: str, **more: Any) -> dict[str, Any]:
    """Describe an object that may have any members, and the reason."""
    return {"type": "object", "additionalProperties": True, "description": reason, **more}


METADATA = anything("Your own values. Rensei stores them with the run, and reads nothing in them.")
# A new kind of block is passed on without being read.
BLOCK = anything(
    "A content block of the Messages API, which has more members for each type.",
    required=["type"],
    properties={"type": {"type": "string"}},
)
