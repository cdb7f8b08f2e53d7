"""The facts of each model that determine whether a request is valid and how it is counted."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Lifecycle = Literal["active", "deprecated", "retired"]


@dataclass(frozen=True, kw_only=True)
class Model:
    id: str
    aliases: list[str]
    display_name: str
    line: str | None
    lifecycle: Lifecycle
    released_on: str | None
    deprecated_on: str | None
    retires_on: str | None
    context_window: int
    max_tokens: int
    vision: bool
    high_resolution_vision: bool
    thinking_types: list[str]
    thinking_on_by_default: bool
    thinking_display: str | None
    thinking_off_up_to_high_effort_only: bool
    efforts: list[str]
    effort_default: str | None
    min_cache_tokens: int | None
    sampling_on_2023_06_01: bool
    prefill: bool
    mid_conversation_system: bool
    forced_tool_choice: bool
    inference_geo: bool
    fast_mode: str | None
    retention_required: bool
    never_served: bool

    def info(self, *, lifecycle: Lifecycle) -> dict[str, Any]:
        """Build the model's object in `GET /v1/models`."""
        return {
            "type": "model",
            "id": self.id,
            "display_name": self.display_name,
            "created_at": _midnight(self.released_on or "1970-01-01"),
            "lifecycle": lifecycle,
            "deprecated_at": _midnight(self.deprecated_on),
            "retires_at": _midnight(self.retires_on),
            "line": self.line,
            "max_input_tokens": self.context_window,
            "max_tokens": self.max_tokens,
            "capabilities": self._capabilities(),
        }

    def _capabilities(self) -> dict[str, Any]:
        # Claude 4.5 and newer; older models support neither JSON output nor the newer tools.
        modern = bool(self.efforts) or "4-5" in self.id
        effort = {level: _supported(level in self.efforts) for level in ("low", "medium", "high", "max", "xhigh")}
        thinking = {
            kind: _supported(kind in self.thinking_types)
            for kind in ("adaptive", "between_tools", "disabled", "enabled")
        }
        return {
            "batch": _supported(True),
            "citations": _supported(self.vision),
            "code_execution": _supported(modern),
            "context_management": {"supported": modern},
            "effort": {"supported": bool(self.efforts), **effort},
            "image_input": _supported(self.vision),
            "pdf_input": _supported(self.vision),
            "server_tools": {
                "supported": modern,
                "code_execution": _supported(modern),
                "web_search": _supported(modern),
            },
            "structured_outputs": _supported(modern),
            "thinking": {"supported": bool(self.thinking_types), "types": thinking},
        }


@cache
def all_models() -> dict[str, Model]:
    """Load every model by its id, newest first."""
    rows = json.loads((Path(__file__).parent / "models.json").read_text())["models"]
    rows.sort(key=lambda row: row["released_on"] or "", reverse=True)
    return {row["id"]: Model(**row) for row in rows}


@cache
def find_model(name: str) -> Model | None:
    """Find a model by its id or one of its aliases."""
    for model in all_models().values():
        if name == model.id or name in model.aliases:
            return model
    return None


def _supported(value: bool) -> dict[str, bool]:
    return {"supported": value}


def _midnight(day: str | None) -> str | None:
    return f"{day}T00:00:00Z" if day else None
