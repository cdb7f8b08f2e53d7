"""
Convert a model or a profile to the format of `ModelInfo`.

Source: https://platform.claude.com/docs/en/api/models/retrieve and the types of the `anthropic` SDK 2.12.0.
"""

from datetime import date
from typing import Any

from catalog.models import CatalogEntry
from profiles.models import ModelProfile
from rensei.core.periods import written

# The newer tools, JSON output and context management came with Claude Sonnet 4.5.
_NEWER_TOOLS_SINCE = date(2025, 9, 29)
_UNKNOWN_DAY = "1970-01-01T00:00:00Z"
_LINES = frozenset({"haiku", "sonnet", "opus", "fable", "mythos"})
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_THINKING_TYPES = ("adaptive", "between_tools", "disabled", "enabled")


def of_entry(entry: CatalogEntry, *, today: date) -> dict[str, Any]:
    """Convert a catalog entry. Unknown values are null."""
    return {
        "type": "model",
        "id": entry.model_id,
        "display_name": entry.display_name,
        "created_at": _midnight(entry.released_on) or _UNKNOWN_DAY,
        "lifecycle": entry.lifecycle_on(today).value,
        "deprecated_at": _midnight(entry.deprecated_on),
        "retires_at": _midnight(entry.retires_on),
        "line": entry.line if entry.line in _LINES else None,
        "max_input_tokens": entry.context_window_tokens,
        "max_tokens": entry.max_output_tokens,
        "capabilities": _capabilities(entry) if entry.capabilities else None,
    }


def of_profile(profile: ModelProfile, served: CatalogEntry | None, *, today: date) -> dict[str, Any]:
    """Convert a profile. It has its own id and name, and the capabilities of its served model."""
    info = of_entry(served or CatalogEntry(model_id=profile.model_id), today=today)
    return info | {
        "id": profile.public_id,
        "display_name": profile.name,
        "created_at": written(profile.created_at, timespec="seconds"),
    }


def _capabilities(entry: CatalogEntry) -> dict[str, Any]:
    known = entry.capabilities
    sees = bool(known.get("vision"))
    newer = entry.released_on is not None and entry.released_on >= _NEWER_TOOLS_SINCE
    levels = entry.effort_levels if known.get("nativeEffort") else []
    types = known.get("thinking", {}).get("types", [])
    return {
        # The gateway serves single messages only.
        "batch": _supported(False),
        "citations": _supported(sees),
        "code_execution": _supported(newer),
        "context_management": _supported(newer),
        "effort": _supported(bool(levels)) | {level: _supported(level in levels) for level in _EFFORTS},
        "image_input": _supported(sees),
        "pdf_input": _supported(sees),
        "server_tools": _supported(newer) | {name: _supported(newer) for name in ("code_execution", "web_search")},
        "structured_outputs": _supported(newer),
        "thinking": _supported(bool(types)) | {"types": {kind: _supported(kind in types) for kind in _THINKING_TYPES}},
    }


def _supported(value: bool) -> dict[str, Any]:
    return {"supported": value}


def _midnight(day: date | None) -> str | None:
    return f"{day}T00:00:00Z" if day else None
