"""The facts of a model: their valid formats, and a lookup of the same model under another snapshot date."""

import re
from typing import Any

from catalog.models import CatalogEntry
from rensei.core.effort import Effort
from rensei.core.errors import FieldError, json_pointer

SNAPSHOT_DATE = re.compile(r"-\d{8}$")
FACTS = (
    "line",
    "released_on",
    "deprecated_on",
    "retires_on",
    "replaced_by",
    "context_window_tokens",
    "max_output_tokens",
    "capabilities",
    "effort_levels",
)
THINKING_TYPES = ("adaptive", "between_tools", "enabled", "disabled")
CAPABILITY_FLAGS = ("vision", "highResVision", "promptCaching", "forcedToolChoice", "prefill", "nativeEffort")
LARGEST_TOKENS = 2**31 - 1


def check_tokens(tokens: int | None, *, pointer: str) -> None:
    """:raises FieldError: if a number of tokens is given that is out of range"""
    if tokens is not None and (type(tokens) is not int or not 1 <= tokens <= LARGEST_TOKENS):
        raise FieldError(pointer=pointer, reason="Give a positive whole number of tokens, or leave it out.")


def check_capabilities(capabilities: dict[str, Any]) -> None:
    """:raises FieldError: if a capability is unknown, or its value has the wrong format"""
    known = (*CAPABILITY_FLAGS, "minCacheTokens", "thinking")
    for name, value in capabilities.items():
        pointer = json_pointer("capabilities", name)
        if name not in known:
            raise FieldError(pointer=pointer, reason=f"This capability is not known. Known: {', '.join(known)}.")
        if name in CAPABILITY_FLAGS and not isinstance(value, bool):
            raise FieldError(pointer=pointer, reason="Give true or false.")
        if name == "minCacheTokens" and value is not None and (type(value) is not int or value < 1):
            raise FieldError(pointer=pointer, reason="Give a positive whole number of tokens, or null.")
        if name == "thinking" and not _is_thinking(value):
            raise FieldError(pointer=pointer, reason='Give {"types": ["adaptive", …], "onByDefault": true or false}.')


def check_effort_levels(levels: list[str], capabilities: dict[str, Any]) -> None:
    """:raises FieldError: if a level is unknown, or no capability of the model uses it"""
    for place, level in enumerate(levels):
        if level not in Effort.values:
            raise FieldError(pointer=f"/efforts/{place}", reason=f"Effort is one of {', '.join(Effort.values)}.")
    takes_budgets = "enabled" in capabilities.get("thinking", {}).get("types", [])
    if not capabilities.get("nativeEffort") and not takes_budgets:
        raise FieldError(
            pointer="/efforts",
            reason="Efforts need a model that takes them: set capabilities.nativeEffort, or the thinking type enabled.",
        )


def facts_of_same_model(provider: str, model_id: str) -> dict[str, Any]:
    """Copy the facts of a platform entry whose id differs in its snapshot date only. Nothing is guessed."""
    name = SNAPSHOT_DATE.sub("", model_id)
    listed = CatalogEntry.objects.filter(org=None, provider=provider, model_id__startswith=name).order_by("-model_id")
    for entry in listed:
        if SNAPSHOT_DATE.sub("", entry.model_id) == name:
            return {fact: getattr(entry, fact) for fact in FACTS}
    return {}


def _is_thinking(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"types", "onByDefault"}
        and isinstance(value["onByDefault"], bool)
        and isinstance(value["types"], list)
        and all(kind in THINKING_TYPES for kind in value["types"])
    )
