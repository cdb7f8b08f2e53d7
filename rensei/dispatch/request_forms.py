"""JSON schemas of the request parts that `requests` checks, for the OpenAPI document."""

from typing import Any

from rensei.core.json_fields import NOT_BLANK, anything, members
from rensei.dispatch.admission.requests import BLOCK_TYPES, ROLES

_SPECIAL = ("text", "image", "tool_result")


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _block(kind: str, words: str, required: list[str], **properties: Any) -> dict[str, Any]:
    return anything(
        words, properties={"type": {"type": "string", "const": kind}, **properties}, required=["type", *required]
    )


TEXT = {"type": "string", "pattern": NOT_BLANK}
PARTS = {
    "TextBlock": _block("text", "A text, perhaps with `cache_control`.", ["text"], text=TEXT),
    "ImageSource": anything(
        "Base64 with its media type, a data URL or an https URL.",
        properties={
            "type": {"type": "string", "enum": ["base64", "url"]},
            "media_type": {"type": "string"},
            "data": {"type": "string"},
            "url": {"type": "string"},
        },
        required=["type"],
    ),
    "ImageBlock": _block("image", "An image.", ["source"], source=_ref("ImageSource")),
    "ToolResultBlock": _block(
        "tool_result",
        "What a tool gave: a text, or blocks.",
        [],
        tool_use_id={"type": "string"},
        content={"oneOf": [TEXT, {"type": "array", "minItems": 1, "items": _ref("ContentBlock")}]},
    ),
    "OtherBlock": anything(
        "Another block of the Messages API, which the provider judges.",
        properties={"type": {"type": "string", "enum": [kind for kind in BLOCK_TYPES if kind not in _SPECIAL]}},
        required=["type"],
    ),
    "ContentBlock": {
        "oneOf": [_ref(name) for name in ("TextBlock", "ImageBlock", "ToolResultBlock", "OtherBlock")],
    },
    "Message": members(
        {
            "role": {"type": "string", "enum": list(ROLES)},
            "content": {"oneOf": [TEXT, {"type": "array", "minItems": 1, "items": _ref("ContentBlock")}]},
        },
        required=True,
    ),
}
MESSAGES = {
    "type": "array",
    "description": "The conversation, which the user begins, in the shape of the Messages API",
    "minItems": 1,
    "items": _ref("Message"),
}
SYSTEM = {
    "description": "A text, or a list of text blocks",
    "oneOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": _ref("TextBlock")}],
}
