"""What the Python programs have in common: whom they call, and what they ask."""

import json
import os
from typing import Any

GATEWAY, TOKEN, MODEL = os.environ["GATEWAY"], os.environ["TOKEN"], os.environ["MODEL"]
HELLO = "Hello."
SIXTY = "[[reply 60 words]]"
LONG = "[[reply 400 words]] [[slow 0.01]]"
CALL = "[[use get_weather]]"
REFUSE = "[[stop refusal]] Hello."
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def picture() -> str:
    """Give a PNG of 8 by 8 pixels, in base64."""
    return os.environ["PICTURE"]


def finish(found: dict[str, Any]) -> None:
    print(json.dumps(found))
