"""
Values of a JSON body whose form is written as a JSON schema, for the OpenAPI document.

What such a value may hold is checked by the service that takes it, which names the place of each fault.
"""

from collections.abc import Callable, Mapping
from typing import Any

from rest_framework import serializers


class JSONDocument(serializers.JSONField):
    """
    A JSON value with a form of its own, which the OpenAPI document shows under `name`.

    `parts` are forms that it refers to, by their names. A form whose objects take any member says why in its
    description: a test lists them.
    """

    def __init__(
        self, name: str, form: dict[str, Any], *, parts: Mapping[str, dict[str, Any]] | None = None, **options: Any
    ) -> None:
        self.form_name, self.form, self.parts = name, form, parts or {}
        super().__init__(**options)

    def to_internal_value(self, data: Any) -> Any:
        """:raises ValidationError: if it is no object, or no list, where its form is one"""
        kind: Any = {"object": dict, "array": list}.get(self.form.get("type", ""), object)
        if not isinstance(data, kind):
            raise serializers.ValidationError(f"Give {'an object' if kind is dict else 'a list'}.")
        return super().to_internal_value(data)


# Of a text that is trimmed and then may not be empty.
NOT_BLANK = r"\S"
# Of a name that people see: it has something to see, and no control character.
NAME = {"pattern": r"^[^\u0000-\u001f\u007f-\u009f]*[^\u0000-\u0020\u007f-\u00a0][^\u0000-\u001f\u007f-\u009f]*$"}


class Text(serializers.CharField):
    """A text whose form is a JSON schema, or a function that makes one. What it may be is checked by the service."""

    def __init__(self, form: dict[str, Any] | Callable[[], dict[str, Any]], **options: Any) -> None:
        self.form = form
        super().__init__(**options)

    def described(self) -> dict[str, Any]:
        return self.form() if callable(self.form) else self.form


def one_of(known: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
    """Describe a name among those that are registered when the document is made."""
    return lambda: {"enum": sorted(known)}


def whole(pattern: str) -> dict[str, Any]:
    """Describe a text by the pattern of the whole of it, without the white space around it, which is taken away."""
    return {"pattern": rf"^\s*(?:{pattern})\s*$"}


def members(properties: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    """Describe an object that has these members and no other."""
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": list(properties)} if required else found


def anything(reason: str, **more: Any) -> dict[str, Any]:
    """Describe an object that may hold anything, and say why."""
    return {"type": "object", "additionalProperties": True, "description": reason, **more}


METADATA = anything("Your own values. Rensei stores them with the run, and reads nothing in them.")
# A new kind of block is passed on unread.
BLOCK = anything(
    "A content block of the Messages API, which has more members for each type.",
    required=["type"],
    properties={"type": {"type": "string"}},
)
